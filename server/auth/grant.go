package auth

import (
	"context"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// Passthrough is the profile of callers whose own Atlas JWT is passed on. No profile of a policy can have this name.
const Passthrough = "passthrough"

// Grant is what an [Authenticator] has found about one call.
type Grant struct {
	// Caller is who is calling.
	Caller Caller
	// Profile is the Atlas identity with which Atlas is to be called: the name of a profile, or Passthrough.
	Profile string
	// UserauthtokenFile is where the policy that decided has the secret of that profile: a later policy may mean another
	// Atlas user by the same name. Empty without a policy, and with Passthrough.
	UserauthtokenFile string
	// JWT is the caller's own Atlas JWT, with Passthrough only.
	JWT atlas.JWT
}

type grantKey struct{}

// NewGrantContext returns ctx carrying the grant.
func NewGrantContext(ctx context.Context, grant Grant) context.Context {
	return context.WithValue(ctx, grantKey{}, grant)
}

// GrantFromContext returns the grant put there by NewGrantContext. It fails with ErrMissing rather than return an empty one.
func GrantFromContext(ctx context.Context) (Grant, error) {
	grant, ok := ctx.Value(grantKey{}).(Grant)
	if !ok || grant.Profile == "" {
		return Grant{}, ErrMissing
	}
	return grant, nil
}
