package server

import (
	"context"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/server/auth"
	"github.com/ForstaLabs/ephemeral-token-service/server/chain"
	"github.com/ForstaLabs/ephemeral-token-service/server/tokencache"
)

// Tokens has the ephemeral tokens. *tokencache.Cache is one: it shares, remembers, and asks Atlas.
type Tokens interface {
	Create(ctx context.Context, cred atlas.Credential, fresh bool) (tokencache.Result, error)
	Delete(ctx context.Context, cred atlas.Credential) (org string, err error)
	Check() error
}

// service is the two RPCs, as they run at the inner end of the call chain.
type service struct {
	ephemeraltokenv1.UnimplementedEphemeralTokenServiceServer
	tokens Tokens
}

func (s *service) CreateToken(ctx context.Context, _ *ephemeraltokenv1.CreateTokenRequest) (*ephemeraltokenv1.CreateTokenResponse, error) {
	cred, err := s.credential(ctx)
	if err != nil {
		return nil, err
	}
	result, err := s.tokens.Create(ctx, cred, wantsFresh(ctx))
	tellStatus(ctx, result.Status)
	if err != nil {
		return nil, err
	}
	chain.RecordFrom(ctx).Org = result.Org
	return &ephemeraltokenv1.CreateTokenResponse{Token: string(result.Token)}, nil
}

func (s *service) DeleteToken(ctx context.Context, _ *ephemeraltokenv1.DeleteTokenRequest) (*ephemeraltokenv1.DeleteTokenResponse, error) {
	cred, err := s.credential(ctx)
	if err != nil {
		return nil, err
	}
	org, err := s.tokens.Delete(ctx, cred)
	if err != nil {
		return nil, err
	}
	chain.RecordFrom(ctx).Org = org
	return &ephemeraltokenv1.DeleteTokenResponse{}, nil
}

// credential is what the call's grant goes on with.
func (s *service) credential(ctx context.Context) (atlas.Credential, error) {
	grant, err := auth.GrantFromContext(ctx)
	if err != nil {
		return atlas.Credential{}, err
	}
	if grant.Profile == auth.Passthrough {
		return atlas.Credential{JWT: grant.JWT}, nil
	}
	return grant.Source.Credential(ctx)
}

// Headers about remembering, in both directions.
const (
	cacheControlHeader = "cache-control" // RFC 9111 §5.2
	cacheStatusHeader  = "cache-status"  // RFC 9211
	ageHeader          = "age"           // RFC 9111 §5.1
)

// wantsFresh reports whether the caller does not want what is remembered.
func wantsFresh(ctx context.Context) bool {
	for _, value := range metadata.ValueFromIncomingContext(ctx, cacheControlHeader) {
		for directive := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(directive), "no-cache") {
				return true
			}
		}
	}
	return false
}

// tellStatus puts where the answer comes from into its headers, and on record.
func tellStatus(ctx context.Context, status tokencache.Status) {
	headers := metadata.Pairs(cacheStatusHeader, status.String())
	if status.Hit {
		headers.Set(ageHeader, status.AgeSeconds())
	}
	_ = grpc.SetHeader(ctx, headers) // fails only if the headers have gone out, and nothing sends them before this
	chain.RecordFrom(ctx).Cache = status.String()
}
