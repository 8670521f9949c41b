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

// Credential is that with which the call goes on to Atlas: the caller's own JWT, or that of the profile, which may take a login. It
// fails with ErrMissing if the grant does not say how the call goes on.
func (g Grant) Credential(ctx context.Context) (atlas.Credential, error) {
	if g.Profile == "" || (g.Profile == Passthrough) != (g.Source == nil) {
		return atlas.Credential{}, ErrMissing
	}
	if g.Profile == Passthrough {
		return atlas.Credential{JWT: g.JWT}, nil
	}
	return g.Source.Credential(ctx)
}
