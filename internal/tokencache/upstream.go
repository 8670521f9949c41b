package tokencache

import (
	"context"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// upstream is Atlas, the last layer.
type upstream struct{ atlas Atlas }

func (u upstream) create(ctx context.Context, r request) (Result, error) {
	token, err := atlas.WithReLogin(ctx, r.cred, u.atlas.CreateEphemeralToken)
	if err != nil {
		return Result{}, err
	}
	return Result{Token: token, Org: r.org()}, nil // Atlas has just accepted the JWT
}

func (u upstream) delete(ctx context.Context, r request) (string, error) {
	_, err := atlas.WithReLogin(ctx, r.cred, func(ctx context.Context, jwt atlas.JWT) (struct{}, error) {
		return struct{}{}, u.atlas.DeleteEphemeralToken(ctx, jwt)
	})
	if err != nil {
		return "", err
	}
	return r.org(), nil
}

func (upstream) kept(context.Context, request) (Result, bool) { return Result{}, false }
