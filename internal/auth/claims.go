package auth

import (
	"encoding/base64"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4/json" // which tells a claim from one in another case, and accepts none twice
	"github.com/go-jose/go-jose/v4/jwt"
)

// clockLeeway is how far ahead an issuer's clock may be. An expiry has no leeway.
const clockLeeway = time.Minute

// registeredClaims are those that decide anything here, or could elsewhere (RFC 7519 section 4.1).
var registeredClaims = []string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti"}

var (
	errNoClaims        = errors.New("its claims are not a JSON object")
	errAmbiguousClaims = errors.New("it has a claim twice, or in another case")
)

// readClaims reads the claims of a JWT. It refuses a registered claim that is there twice or in another case, such as SUB: an issuer
// may let its users choose the names of further claims, and these must not stand in for the issuer's own.
func readClaims(payload []byte) (map[string]json.RawMessage, error) {
	var claims map[string]json.RawMessage
	if json.Unmarshal(payload, &claims) != nil {
		if isObject(payload) {
			return nil, errAmbiguousClaims
		}
		return nil, errNoClaims
	}
	for name := range claims {
		if slices.ContainsFunc(registeredClaims, func(r string) bool { return name != r && strings.EqualFold(name, r) }) {
			return nil, errAmbiguousClaims
		}
	}
	return claims, nil
}

// peekIssuer returns the issuer that a JWT claims to be from, empty if it claims none, as Atlas's do not. Nothing is verified: the
// answer chooses who has to verify it. A JWT that cannot be read claims none. An issuer that is not a text is ErrMalformed, and ambiguous
// claims are ErrCallerRejected.
func peekIssuer(token string) (string, error) {
	_, rest, _ := strings.Cut(token, ".")
	payload, _, _ := strings.Cut(rest, ".")
	decoded, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return "", nil //nolint:nilerr // Atlas decides what it is
	}
	claims, err := readClaims(decoded)
	switch {
	case errors.Is(err, errNoClaims) || err == nil && claims["iss"] == nil:
		return "", nil
	case err != nil:
		return "", fmt.Errorf("%w: %w", ErrCallerRejected, err)
	}
	var issuer string
	if err := json.Unmarshal(claims["iss"], &issuer); err != nil || issuer == "" {
		return "", ErrMalformed
	}
	return issuer, nil
}

// subject checks the claims of a token that the issuer has signed.
func (i *issuer) subject(payload []byte) (string, error) {
	if _, err := readClaims(payload); err != nil {
		return "", err
	}
	var claims jwt.Claims
	if json.Unmarshal(payload, &claims) != nil {
		return "", errors.New("a claim is not of the type that it should be")
	}
	switch {
	case claims.Expiry == nil:
		return "", errors.New("it has no expiry")
	case !time.Now().Before(claims.Expiry.Time()): // the leeway is not for this end
		return "", fmt.Errorf("it expired at %s", claims.Expiry.Time().UTC().Format(time.RFC3339))
	case len(claims.Audience) != 1: // another audience could use it here (OpenID Connect Core section 3.1.3.7)
		return "", errors.New("it is for several audiences, or for none")
	}
	if err := claims.ValidateWithLeeway(jwt.Expected{Issuer: i.URL, AnyAudience: jwt.Audience{i.Audience}}, clockLeeway); err != nil {
		return "", err
	}
	return claims.Subject, checkSubject(claims.Subject)
}

// isObject reports whether text is a JSON object, whatever names it has.
func isObject(text []byte) bool {
	var object map[string]any
	return stdjson.Unmarshal(text, &object) == nil
}
