package server

import (
	"context"
	"fmt"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/server/auth"
)

// Atlas is what the service needs of Atlas. *atlas.Client is one. Errors are *atlas.Error.
type Atlas interface {
	CreateEphemeralToken(ctx context.Context, jwt atlas.JWT) (atlas.Token, error)
	DeleteEphemeralToken(ctx context.Context, jwt atlas.JWT) error
}

// service is the two RPCs, as they run at the inner end of the call chain.
type service struct {
	ephemeraltokenv1.UnimplementedEphemeralTokenServiceServer
	atlas      Atlas
	identities Identities
}

func (s *service) CreateToken(ctx context.Context, _ *ephemeraltokenv1.CreateTokenRequest) (*ephemeraltokenv1.CreateTokenResponse, error) {
	token, err := withCredential(ctx, s, s.atlas.CreateEphemeralToken)
	if err != nil {
		return nil, err
	}
	return &ephemeraltokenv1.CreateTokenResponse{Token: string(token)}, nil
}

func (s *service) DeleteToken(ctx context.Context, _ *ephemeraltokenv1.DeleteTokenRequest) (*ephemeraltokenv1.DeleteTokenResponse, error) {
	_, err := withCredential(ctx, s, func(ctx context.Context, jwt atlas.JWT) (struct{}, error) {
		return struct{}{}, s.atlas.DeleteEphemeralToken(ctx, jwt)
	})
	if err != nil {
		return nil, err
	}
	return &ephemeraltokenv1.DeleteTokenResponse{}, nil
}

// withCredential runs operation with the JWT that the call's grant names: the caller's own, or that of a profile, which a
// 401 heals once.
func withCredential[T any](ctx context.Context, s *service, operation func(context.Context, atlas.JWT) (T, error)) (T, error) {
	var none T
	grant, err := auth.GrantFromContext(ctx)
	if err != nil {
		return none, err
	}
	// What Atlas has just accepted may be believed: then the org is on record.
	accepted := func(ctx context.Context, jwt atlas.JWT) (T, error) {
		answer, err := operation(ctx, jwt)
		if err == nil {
			recordFrom(ctx).org = jwt.UnverifiedClaims().OrgID
		}
		return answer, err
	}
	if grant.Profile == auth.Passthrough {
		return accepted(ctx, grant.JWT)
	}
	source, ok := s.identities.Identity(grant)
	if !ok {
		return none, fmt.Errorf("profile %s has no Atlas identity", grant.Profile)
	}
	return atlas.WithJWT(ctx, source, accepted)
}
