package server

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/server/auth"
	"github.com/ForstaLabs/ephemeral-token-service/server/chain"
	"github.com/ForstaLabs/ephemeral-token-service/server/tokencache"
)

// Atlas is what the service needs of Atlas. *atlas.Client is one. Errors are *atlas.Error.
type Atlas interface {
	CreateEphemeralToken(ctx context.Context, jwt atlas.JWT) (atlas.Token, error)
	DeleteEphemeralToken(ctx context.Context, jwt atlas.JWT) error
}

// Cache is what stands between the calls and Atlas. *tokencache.Cache is one.
type Cache interface {
	Create(ctx context.Context, cred tokencache.Credential, fresh bool, ask func(context.Context) (tokencache.Answer, error)) (tokencache.Result, error)
	Delete(ctx context.Context, cred tokencache.Credential, send func(context.Context) (atlas.JWT, error)) error
	Check() error
}

// service is the two RPCs, as they run at the inner end of the call chain.
type service struct {
	ephemeraltokenv1.UnimplementedEphemeralTokenServiceServer
	atlas      Atlas
	cache      Cache
	identities Identities
}

func (s *service) CreateToken(ctx context.Context, _ *ephemeraltokenv1.CreateTokenRequest) (*ephemeraltokenv1.CreateTokenResponse, error) {
	id, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	result, err := s.cache.Create(ctx, id.credential, wantsFresh(ctx), func(ctx context.Context) (tokencache.Answer, error) {
		return withJWT(ctx, id, func(ctx context.Context, jwt atlas.JWT) (tokencache.Answer, error) {
			token, err := s.atlas.CreateEphemeralToken(ctx, jwt)
			return tokencache.Answer{Token: token, JWT: jwt}, err
		})
	})
	tellStatus(ctx, result.Status)
	if err != nil {
		return nil, err
	}
	// Whatever the token was found by: one of another org than the credential's is not handed over.
	if id.source != nil && result.Org != id.credential.Org() {
		return nil, atlas.ErrOrgChanged
	}
	chain.RecordFrom(ctx).Org = result.Org
	return &ephemeraltokenv1.CreateTokenResponse{Token: string(result.Token)}, nil
}

func (s *service) DeleteToken(ctx context.Context, _ *ephemeraltokenv1.DeleteTokenRequest) (*ephemeraltokenv1.DeleteTokenResponse, error) {
	id, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	err = s.cache.Delete(ctx, id.credential, func(ctx context.Context) (atlas.JWT, error) {
		return withJWT(ctx, id, func(ctx context.Context, jwt atlas.JWT) (atlas.JWT, error) {
			err := s.atlas.DeleteEphemeralToken(ctx, jwt)
			if err == nil { // what Atlas has just accepted may be believed: then the org is on record
				chain.RecordFrom(ctx).Org = jwt.UnverifiedClaims().OrgID
			}
			return jwt, err
		})
	})
	if err != nil {
		return nil, err
	}
	return &ephemeraltokenv1.DeleteTokenResponse{}, nil
}

// identity is as whom a call goes on to Atlas.
type identity struct {
	credential tokencache.Credential
	jwt        atlas.JWT
	profile    atlas.Credential   // of a profile: what jwt was had with
	source     *atlas.TokenSource // of a profile
}

// identify finds the credential that the call's grant names.
func (s *service) identify(ctx context.Context) (identity, error) {
	grant, err := auth.GrantFromContext(ctx)
	if err != nil {
		return identity{}, err
	}
	if grant.Profile == auth.Passthrough {
		return identity{credential: tokencache.CallersJWT(grant.JWT), jwt: grant.JWT}, nil
	}
	source, ok := s.identities.Identity(grant)
	if !ok {
		return identity{}, fmt.Errorf("profile %s has no Atlas identity", grant.Profile)
	}
	cred, err := source.Credential(ctx)
	if err != nil {
		return identity{}, err
	}
	if cred.Secret == "" { // it would look like that of any other profile without one
		return identity{}, fmt.Errorf("profile %s has a JWT and no userauthtoken that it was traded for", grant.Profile)
	}
	return identity{credential: tokencache.Identity(grant.Profile, cred), jwt: cred.JWT, profile: cred, source: source}, nil
}

// withJWT runs call with the caller's JWT, or with that of a profile, which a 401 heals once.
func withJWT[T any](ctx context.Context, id identity, call func(context.Context, atlas.JWT) (T, error)) (T, error) {
	if id.source == nil {
		return call(ctx, id.jwt)
	}
	return atlas.WithReLogin(ctx, id.source, id.profile, call)
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
