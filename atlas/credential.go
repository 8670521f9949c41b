package atlas

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
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

	claims   *Claims   // of the JWT, if parsed already
	identity *Identity // of the profile
}

// Claims returns the JWT's claims. Trust them only if Atlas has issued the JWT to this process, as
// for a profile, or has just accepted it.
func (c Credential) Claims() Claims {
	if c.claims != nil {
		return *c.claims
	}
	return c.JWT.UnverifiedClaims()
}

// Renewed returns the current Credential of c's profile; c itself, if it is a caller's own.
func (c Credential) Renewed(ctx context.Context) (Credential, error) {
	if c.identity == nil {
		return c, nil
	}
	return c.identity.Credential(ctx)
}

// WithReLogin runs call with the JWT of cred. If Atlas refuses one of a profile with a 401, it is
// dropped, and call runs exactly once more after a new login. That is safe for a delete too: a 401
// means that Atlas did not do it.
//
// If the secret has been replaced by that of a user of another org, the new login is for that org.
// Then the call is not repeated, and the error is [ErrOrgChanged].
func WithReLogin[T any](ctx context.Context, cred Credential, call func(context.Context, JWT) (T, error)) (T, error) {
	if cred.identity == nil {
		return call(ctx, cred.JWT)
	}
	ctx = WithTenant(ctx, Tenant{Profile: cred.Profile})
	answer, err := call(ctx, cred.JWT)
	refused, ok := errors.AsType[*Error](err)
	if !ok || Classify(err) != ClassUnauthorized {
		return answer, err
	}
	var none T
	if err := cred.identity.blockedError(refused); err != nil {
		return none, err
	}
	cred.identity.Invalidate(cred.JWT)
	next, err := cred.Renewed(ctx)
	switch {
	case err != nil:
		return none, err
	case next.Claims().OrgID != cred.Claims().OrgID:
		return none, ErrOrgChanged
	}
	answer, err = call(ctx, next.JWT)
	if refused, ok := errors.AsType[*Error](err); ok && Classify(err) == ClassUnauthorized {
		return none, cred.identity.block(refused)
	}
	return answer, err
}

// ErrOrgChanged says that a call's identity now belongs to another org. Nothing was done. A call
// with the identity's current Credential is for the new org.
var ErrOrgChanged = errors.New("the service's own credential is now one of another org")

// Tenant is the party that an operation is for: a profile, or the org of a caller's own JWT. Set
// Org only for a JWT that Atlas has accepted, since an unverified claim identifies no org.
type Tenant struct{ Profile, Org string }

type tenantKey struct{}

// WithTenant returns a context for operations of a tenant, so that a wrapper of a Client can tell
// tenants apart. [WithReLogin] and an [Identity] set the profile.
func WithTenant(ctx context.Context, tenant Tenant) context.Context {
	return context.WithValue(ctx, tenantKey{}, tenant)
}

// TenantOf returns the Tenant of [WithTenant]. It is zero if none is set.
func TenantOf(ctx context.Context) Tenant {
	tenant, _ := ctx.Value(tenantKey{}).(Tenant)
	return tenant
}

// Claims are claims of a JWT. Only Atlas can verify them, so trust them only if Atlas has just
// issued or accepted the JWT.
type Claims struct {
	OrgID  string    // UUID
	Expiry time.Time // exp; zero if absent

	issuedAt   time.Time // iat; zero if absent
	loggedInAt time.Time // orig_iat, which a refresh does not change; zero if absent
}

// UnverifiedClaims parses the payload of a JWT. The Claims are zero if it cannot be parsed.
func (j JWT) UnverifiedClaims() Claims {
	parts := strings.Split(string(j), ".")
	if len(parts) != 3 {
		return Claims{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return Claims{}
	}
	var raw struct {
		OrgID string  `json:"org_id"`
		Exp   seconds `json:"exp"`
		Iat   seconds `json:"iat"`
		Orig  seconds `json:"orig_iat"`
	}
	if err := json.Unmarshal(payload, &raw); err != nil {
		return Claims{}
	}
	return Claims{
		OrgID:  strings.ToLower(raw.OrgID), // one org, however it is spelled
		Expiry: raw.Exp.time(), issuedAt: raw.Iat.time(), loggedInAt: raw.Orig.time(),
	}
}

// seconds is a NumericDate, of which fractions are allowed (RFC 7519 section 2).
type seconds float64

func (s seconds) time() time.Time {
	if s <= 0 || s >= 1<<40 { // far beyond any date, and far within an int64
		return time.Time{}
	}
	return time.Unix(int64(s), 0)
}

// redacted is what a secret prints as.
const redacted = "[redacted]"

// JWT is an Atlas JSON Web Token, the credential of one Atlas user.
//
// It is a secret: it prints as "[redacted]" under the fmt verbs, in log/slog and when marshalled as
// text or JSON; a conversion, string(jwt), is the one way to its characters. A string type cannot
// prevent three leaks, so avoid %p, an unexported struct field (fmt does not call the methods of
// one), and the key of a map that is marshalled (encoding/json takes string keys as they are).
type JWT string

// Format writes "[redacted]" whatever the verb.
func (JWT) Format(s fmt.State, _ rune) { writeRedacted(s) }

// MarshalText returns "[redacted]".
func (JWT) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Token is an ephemeral user token. It is a secret and prints like [JWT].
type Token string

// Format writes "[redacted]" whatever the verb.
func (Token) Format(s fmt.State, _ rune) { writeRedacted(s) }

// MarshalText returns "[redacted]".
func (Token) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// UserAuthToken is the long-lived secret with which a bot logs in. It prints like [JWT].
type UserAuthToken string

// Format writes "[redacted]" whatever the verb.
func (UserAuthToken) Format(s fmt.State, _ rune) { writeRedacted(s) }

// MarshalText returns "[redacted]".
func (UserAuthToken) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// writeRedacted ignores the error as fmt.State's own Write does: it only appends to a buffer.
func writeRedacted(w io.Writer) { _, _ = io.WriteString(w, redacted) }
