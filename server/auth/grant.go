package auth

import (
	"context"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// Passthrough is the profile of callers whose own Atlas JWT is passed on. No profile of a policy can have this name.
const Passthrough = "passthrough"

// Sources have the JWTs of the profiles that the service holds, by the profile's name. Nobody changes one that has been handed over.
type Sources map[string]*atlas.TokenSource

// Grant is what an [Authenticator] has found about one call, and all that the call needs to go on to Atlas.
type Grant struct {
	// Caller is who is calling.
	Caller Caller
	// Profile is the name of the profile as which Atlas is to be called, or Passthrough.
	Profile string
	// JWT is the caller's own Atlas JWT, with Passthrough only.
	JWT atlas.JWT
	// Source is the profile's, nil with Passthrough. It is the one that went with the policy which decided: a later policy
	// may mean another Atlas user by the same name.
	Source *atlas.TokenSource
}

type grantKey struct{}

// NewGrantContext returns ctx carrying the grant.
func NewGrantContext(ctx context.Context, grant Grant) context.Context {
	return context.WithValue(ctx, grantKey{}, grant)
}

// GrantFromContext returns the grant put there by NewGrantContext. It fails with ErrMissing rather than return one that says
// nothing about how the call goes on.
func GrantFromContext(ctx context.Context) (Grant, error) {
	grant, ok := ctx.Value(grantKey{}).(Grant)
	if !ok || grant.Profile == "" || (grant.Profile == Passthrough) != (grant.Source == nil) {
		return Grant{}, ErrMissing
	}
	return grant, nil
}
