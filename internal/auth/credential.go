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

// SecondHeader is how clients of a gRPC gateway may also write it. It is never read as a credential, but beside a real one
// it is a second.
const SecondHeader = "grpc-metadata-authorization"

// callCredentials returns the authorization values of a call.
func callCredentials(ctx context.Context) []string {
	values := metadata.ValueFromIncomingContext(ctx, Header)
	if second := metadata.ValueFromIncomingContext(ctx, SecondHeader); len(values) > 0 && len(second) > 0 {
		return append(slices.Clone(values), second...)
	}
	return values
}

// What is wrong with the credential of a call. None of them quotes it.
var (
	// ErrMissing: the call brings nothing that says who is calling, or not the Atlas JWT that is to be passed on.
	ErrMissing = errors.New("the call has no authorization value")
	// ErrMalformed: what it brings cannot be read.
	ErrMalformed = errors.New("the authorization value is not `JWT <jwt>` or `Bearer <jwt>`")
	// ErrAmbiguous: it brings several authorization values, or an Atlas JWT where a profile's is to be used.
	ErrAmbiguous = errors.New("the call has more than one credential")
)

// maxCredential bounds an authorization value, in bytes. Atlas's JWTs have some 300.
const maxCredential = 8 << 10

// parseCredential returns the JWT in the authorization values of one call: exactly one value, `JWT <jwt>` or
// `Bearer <jwt>`. The scheme's case does not matter (RFC 9110 §11.1). The JWT is checked for its shape only, which also
// means that CR, LF, NUL and non-ASCII never travel on. Behind Bearer there may be an OIDC token instead of an Atlas JWT.
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
	rest = strings.TrimLeft(rest, " ") // RFC 9110 §11.4 allows several
	if !isScheme(scheme) || !isCompactJWS(rest) {
		return "", false, mistakeIn(value)
	}
	return atlas.JWT(rest), bearer, nil
}

// isCompactJWS reports whether s looks like a signed JWT: three non-empty base64url parts (RFC 7515 §7.1).
func isCompactJWS(s string) bool {
	parts, length := 1, 0
	for i := range len(s) { // each call passes here, with some hundred bytes
		switch {
		case isBase64URL[s[i]]:
			length++
		case s[i] != '.' || length == 0 || parts == 3:
			return false
		default:
			parts, length = parts+1, 0
		}
	}
	return parts == 3 && length > 0
}

// isBase64URL has the alphabet of RFC 4648 §5.
var isBase64URL = func() (is [256]bool) {
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") {
		is[c] = true
	}
	return is
}()
