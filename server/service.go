package server

import (
	"context"

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
	atlas Atlas
}

func (s *service) CreateToken(ctx context.Context, _ *ephemeraltokenv1.CreateTokenRequest) (*ephemeraltokenv1.CreateTokenResponse, error) {
	jwt, err := auth.FromContext(ctx)
	if err != nil {
		return nil, err
	}
	token, err := s.atlas.CreateEphemeralToken(ctx, jwt)
	if err != nil {
		return nil, err
	}
	return &ephemeraltokenv1.CreateTokenResponse{Token: string(token)}, nil
}

func (s *service) DeleteToken(ctx context.Context, _ *ephemeraltokenv1.DeleteTokenRequest) (*ephemeraltokenv1.DeleteTokenResponse, error) {
	jwt, err := auth.FromContext(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.atlas.DeleteEphemeralToken(ctx, jwt); err != nil {
		return nil, err
	}
	return &ephemeraltokenv1.DeleteTokenResponse{}, nil
}
