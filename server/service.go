package server

import (
	"context"
	"strings"

	"google.golang.org/grpc/metadata"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/internal/call"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
)

// Tokens creates and deletes ephemeral tokens. *tokencache.Cache implements it.
type Tokens interface {
	Create(ctx context.Context, cred atlas.Credential, noCache bool) (tokencache.Result, error)
	Delete(ctx context.Context, cred atlas.Credential) (org string, err error)
	// Check returns a problem for /readyz, or nil.
	Check() error
}

// service implements the two RPCs. They run at the inner end of the call chain.
type service struct {
	ephemeraltokenv1.UnsafeEphemeralTokenServiceServer // makes a missing RPC an error

	tokens Tokens
}

func (s *service) CreateToken(ctx context.Context, _ *ephemeraltokenv1.CreateTokenRequest) (*ephemeraltokenv1.CreateTokenResponse, error) {
	rec := call.RecordFrom(ctx)
	cred, err := credential(ctx, rec)
	if err != nil {
		return nil, err
	}
	result, err := s.tokens.Create(ctx, cred, wantsNoCache(ctx))
	recordCreate(rec, result.Status, err) // also if the call failed
	if err != nil {
		return nil, err
	}
	rec.Org = result.Org
	return &ephemeraltokenv1.CreateTokenResponse{Token: string(result.Token)}, nil
}

func (s *service) DeleteToken(ctx context.Context, _ *ephemeraltokenv1.DeleteTokenRequest) (*ephemeraltokenv1.DeleteTokenResponse, error) {
	rec := call.RecordFrom(ctx)
	cred, err := credential(ctx, rec)
	if err != nil {
		return nil, err
	}
	org, err := s.tokens.Delete(ctx, cred)
	if err != nil {
		rec.NoAtlasCall = tokencache.NotAsked(err) != ""
		return nil, err
	}
	rec.Org = org
	return &ephemeraltokenv1.DeleteTokenResponse{}, nil
}

// credential returns the credential to use at Atlas.
func credential(ctx context.Context, rec *call.Record) (atlas.Credential, error) {
	cred, err := rec.Grant().Credential(ctx)
	rec.NoAtlasCall = err != nil
	return cred, err
}

// Metadata about caching, in both directions.
const (
	cacheControlHeader = "cache-control" // RFC 9111 §5.2
	cacheStatusHeader  = "cache-status"  // RFC 9211
	ageHeader          = "age"           // RFC 9111 §5.1
)

// wantsNoCache reports whether the caller does not accept a cached token.
func wantsNoCache(ctx context.Context) bool {
	for _, value := range metadata.ValueFromIncomingContext(ctx, cacheControlHeader) {
		for directive := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(directive), "no-cache") {
				return true
			}
		}
	}
	return false
}

// recordCreate records where the answer comes from, for its metadata, the audit record and the rate
// of the caller.
func recordCreate(rec *call.Record, status tokencache.Status, err error) {
	rec.Cache, rec.NoAtlasCall = status.String(), status.Hit || status.Collapsed
	if why := tokencache.NotAsked(err); why != "" {
		rec.Cache, rec.NoAtlasCall = "tokend; detail="+why, true
	}
	rec.SetMetadata(cacheStatusHeader, rec.Cache)
	if status.Hit {
		rec.SetMetadata(ageHeader, status.AgeSeconds())
	}
}
