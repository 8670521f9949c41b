package auth

import (
	"context"
	"errors"
	"slices"
	"strings"

	"google.golang.org/grpc/metadata"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// Header is the metadata key and HTTP header in which a caller brings its credential.
const Header = "authorization"

// SecondHeader is what clients of a gRPC gateway may send instead. It is never read as a
// credential, but next to a real one it makes the call ambiguous.
const SecondHeader = "grpc-metadata-authorization"

// callCredentials returns the authorization values of a call.
func callCredentials(ctx context.Context) []string {
	values := metadata.ValueFromIncomingContext(ctx, Header)
	if len(values) == 0 {
		return nil
	}
	return append(values, metadata.ValueFromIncomingContext(ctx, SecondHeader)...)
}

// The errors of a call's credential. None of them quotes it.
var (
	// ErrMissing: the call has nothing that identifies its caller, or no Atlas JWT to pass on.
	ErrMissing = errors.New("the call has no authorization value")
	// ErrMalformed: the authorization value cannot be parsed.
	ErrMalformed = errors.New("the authorization value is not `JWT <jwt>` or `Bearer <jwt>`")
	// ErrAmbiguous: the call has several authorization values, or an Atlas JWT although the caller
	// is mapped to a profile.
	ErrAmbiguous = errors.New("the call has more than one credential")
)

// maxCredential limits an authorization value, in bytes. Atlas's JWTs have about 300.
const maxCredential = 8 << 10

// parseCredential returns the JWT in the authorization values of a call: exactly one value, `JWT
// <jwt>` or `Bearer <jwt>`, in which the scheme's case does not matter (RFC 9110 section 11.1). It
// checks only the form of the JWT, so that CR, LF, NUL and non-ASCII are never passed on. A Bearer
// token may be an OIDC token instead of an Atlas JWT.
func parseCredential(values []string) (jwt atlas.JWT, bearer bool, err error) {
	switch len(values) {
	case 0:
		return "", false, ErrMissing
	case 1:
	default:
		return "", false, ErrAmbiguous
	}
	value := values[0]
	if value == "" {
		return "", false, ErrMissing
	}
	if len(value) > maxCredential {
		return "", false, ErrMalformed
	}
	scheme, rest, _ := strings.Cut(value, " ")
	bearer = strings.EqualFold(scheme, "Bearer")
	rest = strings.TrimLeft(rest, " ") // RFC 9110 section 11.4 allows several
	if !isScheme(scheme) || !isCompactJWS(rest) {
		return "", false, mistakeIn(value)
	}
	return atlas.JWT(rest), bearer, nil
}

// isCompactJWS reports whether s looks like a signed JWT: three non-empty base64url parts (RFC 7515
// section 7.1).
func isCompactJWS(s string) bool {
	dots := 0
	for i := range len(s) {
		switch c := s[i]; {
		case c == '.' && i > 0 && s[i-1] != '.':
			dots++
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return dots == 2 && s[len(s)-1] != '.'
}

// Mistake is a common mistake with a credential. It wraps ErrMalformed or ErrMissing.
type Mistake struct {
	kind error
	// Advice is for the caller. It is a fixed text and quotes nothing.
	Advice string
}

func (m *Mistake) Error() string { return m.Advice }
func (m *Mistake) Unwrap() error { return m.kind }

// The missing credential, where only some would be accepted.
var (
	noJWT         = &Mistake{ErrMissing, "no credential: send `authorization: JWT <jwt>` with an Atlas JWT"}
	noCertificate = &Mistake{ErrMissing, "no credential: show a client certificate that this service trusts"}
	noToken       = &Mistake{ErrMissing, "no credential: send `authorization: Bearer <token>` with a token that this service trusts, or `authorization: JWT <jwt>` with an Atlas JWT"}
)

// The common mistakes in an authorization value.
var (
	otherScheme = &Mistake{ErrMalformed, "the authorization scheme is one that Atlas JWTs do not have: send `JWT <jwt>` or `Bearer <jwt>`"}
	noScheme    = &Mistake{ErrMalformed, "the authorization value has a JWT without a scheme: put `JWT ` in front of it"}
	twoSchemes  = &Mistake{ErrMalformed, "the authorization value has two schemes: send `JWT <jwt>` or `Bearer <jwt>`"}
	onlyScheme  = &Mistake{ErrMalformed, "the authorization value has a scheme and no JWT: check that the variable with the JWT is set"}
	unexpanded  = &Mistake{ErrMalformed, "the authorization value has a variable or placeholder in place of the JWT: check the quotes in the shell, or the template"}
	quoted      = &Mistake{ErrMalformed, "the authorization value has quotes: send `JWT <jwt>` without them"}
)

// otherSchemes are well-known authorization schemes that are not accepted.
var otherSchemes = []string{"Basic", "Digest", "Token", "Negotiate", "NTLM", "DPoP", "ApiKey", "OAuth", "AWS4-HMAC-SHA256"}

// mistakeIn returns the common mistake in a malformed authorization value, or ErrMalformed.
func mistakeIn(value string) error {
	scheme, rest, _ := strings.Cut(value, " ")
	rest = strings.TrimLeft(rest, " ")
	second, _, _ := strings.Cut(rest, " ")
	switch {
	case slices.ContainsFunc(otherSchemes, func(s string) bool { return strings.EqualFold(s, scheme) }):
		return otherScheme
	case strings.ContainsAny(value, "${}<>%"):
		return unexpanded
	case strings.ContainsAny(value, `"'`):
		return quoted
	case isCompactJWS(value):
		return noScheme
	case isScheme(scheme) && rest == "":
		return onlyScheme
	case isScheme(scheme) && isScheme(second):
		return twoSchemes
	}
	return ErrMalformed
}

// isScheme reports whether s is an accepted scheme, in any case.
func isScheme(s string) bool { return strings.EqualFold(s, "JWT") || strings.EqualFold(s, "Bearer") }
