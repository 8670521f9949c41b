// Package auth says who is calling and with which credential.
//
// It reads what a call brings, and nothing else: it neither calls Atlas nor decides what becomes of an error. Nobody
// outside Atlas can verify an Atlas JWT (HS256, and the key is Atlas's alone), so nothing here believes a word that is
// inside one.
package auth

import (
	"context"
	"errors"
	"strings"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// Header is the metadata key and HTTP header in which a caller brings its credential.
const Header = "authorization"

// What is wrong with the credential of a call. None of them quotes it.
var (
	ErrMissing   = errors.New("the call has no authorization value")
	ErrMalformed = errors.New("the authorization value is not `JWT <jwt>` or `Bearer <jwt>`")
	ErrAmbiguous = errors.New("the call has several authorization values")
)

// maxCredential bounds an authorization value, in bytes. Atlas's JWTs have some 300.
const maxCredential = 8 << 10

// ParseCredential returns the Atlas JWT in the authorization values of one call: exactly one value, `JWT <jwt>` or
// `Bearer <jwt>`. The scheme's case does not matter (RFC 9110 §11.1). The JWT is checked for its shape only, which
// also means that CR, LF, NUL and non-ASCII never travel on.
func ParseCredential(values []string) (atlas.JWT, error) {
	switch len(values) {
	case 0:
		return "", ErrMissing
	case 1:
	default:
		return "", ErrAmbiguous
	}
	value := values[0]
	if value == "" {
		return "", ErrMissing
	}
	if len(value) > maxCredential {
		return "", ErrMalformed
	}
	scheme, jwt, _ := strings.Cut(value, " ")
	if !strings.EqualFold(scheme, "JWT") && !strings.EqualFold(scheme, "Bearer") {
		return "", ErrMalformed
	}
	jwt = strings.TrimLeft(jwt, " ") // RFC 9110 §11.4 allows several
	if !isCompactJWS(jwt) {
		return "", ErrMalformed
	}
	return atlas.JWT(jwt), nil
}

// isCompactJWS reports whether s looks like a signed JWT: three non-empty base64url parts (RFC 7515 §7.1).
func isCompactJWS(s string) bool {
	parts := 0
	for part := range strings.SplitSeq(s, ".") {
		if parts++; parts > 3 || part == "" || strings.IndexFunc(part, notBase64URL) >= 0 {
			return false
		}
	}
	return parts == 3
}

func notBase64URL(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
}

type contextKey struct{}

// NewContext returns ctx carrying the credential with which Atlas is to be called.
func NewContext(ctx context.Context, jwt atlas.JWT) context.Context {
	return context.WithValue(ctx, contextKey{}, jwt)
}

// FromContext returns the credential put there by NewContext. It fails with ErrMissing rather than return an empty one.
func FromContext(ctx context.Context) (atlas.JWT, error) {
	jwt, ok := ctx.Value(contextKey{}).(atlas.JWT)
	if !ok {
		return "", ErrMissing
	}
	return jwt, nil
}
