package atlas

import (
	"context"
	"errors"
)

// Credential is the credential of one call.
type Credential struct {
	// JWT is sent to Atlas.
	JWT JWT
	// Profile is the name of the service's Atlas identity that has the JWT, and Secret is the
	// userauthtoken that the JWT was issued for. The secret is the same in every process with this
	// identity; the JWT is not, because each process logs in. Both are empty for a caller's own
	// JWT.
	Profile string
	Secret  UserAuthToken

	claims *Claims      // of the JWT, if parsed already
	source *TokenSource // of the profile
}

// Claims returns the JWT's claims. Trust them only if Atlas has issued the JWT to this process, as
// for a profile, or has just accepted it.
func (c Credential) Claims() Claims {
	if c.claims != nil {
		return *c.claims
	}
	return c.JWT.UnverifiedClaims()
}

// WithClaims returns c with its claims parsed, for a caller that needs them more than once: parsing
// is the most expensive operation of a Credential.
func (c Credential) WithClaims() Credential {
	claims := c.Claims()
	c.claims = &claims
	return c
}

// WithParsedClaims returns c with claims that were parsed from its JWT before.
func (c Credential) WithParsedClaims(claims *Claims) Credential {
	c.claims = claims
	return c
}

// Renewed returns the current Credential of c's profile; c itself, if it is a caller's own.
func (c Credential) Renewed(ctx context.Context) (Credential, error) {
	if c.source == nil {
		return c, nil
	}
	return c.source.Credential(ctx)
}

// WithReLogin runs call with the JWT of cred. If Atlas refuses one of a profile with a 401, it is
// dropped, and call runs exactly once more after a new login. That is safe for a delete too: a 401
// means that Atlas did not do it.
//
// If the secret has been replaced by that of a user of another org, the new login is for that org.
// Then the call is not repeated, and the error is [ErrOrgChanged].
func WithReLogin[T any](ctx context.Context, cred Credential, call func(context.Context, JWT) (T, error)) (T, error) {
	if cred.source == nil {
		return call(ctx, cred.JWT)
	}
	ctx = WithProfile(ctx, cred.Profile)
	answer, err := call(ctx, cred.JWT)
	if Classify(err) != ClassUnauthorized {
		return answer, err
	}
	var none T
	if rejected := cred.source.rejected(err); rejected != nil {
		return none, rejected
	}
	cred.source.Invalidate(cred.JWT)
	next, err := cred.Renewed(ctx)
	switch {
	case err != nil:
		return none, err
	case next.Claims().OrgID != cred.Claims().OrgID:
		return none, ErrOrgChanged
	}
	answer, err = call(ctx, next.JWT)
	if Classify(err) == ClassUnauthorized {
		return none, cred.source.reject(err)
	}
	return answer, err
}

// ErrOrgChanged says that a call's identity now belongs to another org. Nothing was done. A call
// with the source's current Credential is for the new org.
var ErrOrgChanged = errors.New("the service's own credential is now one of another org")
