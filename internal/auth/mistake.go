package auth

import (
	"slices"
	"strings"
)

// Mistake is a common mistake with a credential. It wraps ErrMalformed or ErrMissing.
type Mistake struct {
	kind error
	// Advice is for the caller. It is a fixed text, without a word of what the caller sent.
	Advice string
}

func (m *Mistake) Error() string { return m.Advice }
func (m *Mistake) Unwrap() error { return m.kind }

// What is missing where not every credential would do.
var (
	noJWT         = &Mistake{ErrMissing, "no credential: send `authorization: JWT <jwt>` with an Atlas JWT"}
	noCertificate = &Mistake{ErrMissing, "no credential: show a client certificate that this service trusts"}
	noToken       = &Mistake{ErrMissing, "no credential: send `authorization: Bearer <token>` with a token that this service trusts, or `authorization: JWT <jwt>` with an Atlas JWT"}
)

// What an authorization value can be instead of a credential.
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

// mistakeIn returns the mistake in an authorization value that is not a credential, or ErrMalformed if it is not a common one.
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

// isScheme reports whether s is a scheme that an Atlas JWT may have. Case does not matter.
func isScheme(s string) bool { return strings.EqualFold(s, "JWT") || strings.EqualFold(s, "Bearer") }
