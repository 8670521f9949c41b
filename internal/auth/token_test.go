package auth_test

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth/authtest"
)

// TestOIDCTokens checks accepted and refused tokens.
func TestOIDCTokens(t *testing.T) {
	issuer, other := authtest.NewIssuer(t), authtest.NewIssuer(t)
	ec, stranger := authtest.NewKey(t), authtest.NewKey(t)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	issuer.Publish(map[string]crypto.Signer{"ec": ec, "rsa": authtest.RSAKey(), "ed": ed})
	other.Publish(map[string]crypto.Signer{"ec": stranger})
	der, err := x509.MarshalPKIXPublicKey(authtest.RSAKey().Public())
	if err != nil {
		t.Fatal(err)
	}
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})

	es256 := func(change map[string]any) string {
		return authtest.Sign(t, jwt.SigningMethodES256, "ec", ec, issuer.Claims(change))
	}
	in := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	tampered := func() string {
		header, rest, _ := strings.Cut(es256(map[string]any{"sub": "dev-1"}), ".")
		payload, signature, _ := strings.Cut(rest, ".")
		claims, err := base64.RawURLEncoding.DecodeString(payload)
		if err != nil {
			t.Fatal(err)
		}
		claims = bytes.Replace(claims, []byte("dev-1"), []byte("ci-42"), 1)
		return header + "." + base64.RawURLEncoding.EncodeToString(claims) + "." + signature
	}
	critical := func() string { // unknown, so it must not be ignored (RFC 7515 section 4.1.11)
		token := jwt.NewWithClaims(jwt.SigningMethodES256, issuer.Claims(nil))
		token.Header["kid"], token.Header["crit"], token.Header["x"] = "ec", []string{"x"}, 1
		signed, err := token.SignedString(ec)
		if err != nil {
			t.Fatal(err)
		}
		return signed
	}
	for _, tc := range []struct {
		name  string
		token string
		want  error
	}{
		{"ES256", es256(nil), nil},
		{"RS256", authtest.Sign(t, jwt.SigningMethodRS256, "rsa", authtest.RSAKey(), issuer.Claims(nil)), nil},
		{"PS256", authtest.Sign(t, jwt.SigningMethodPS256, "rsa", authtest.RSAKey(), issuer.Claims(nil)), nil},
		{"EdDSA", authtest.Sign(t, jwt.SigningMethodEdDSA, "ed", ed, issuer.Claims(nil)), nil},
		{"no kid", authtest.Sign(t, jwt.SigningMethodES256, "", ec, issuer.Claims(nil)), nil},
		{"audience in a list", es256(map[string]any{"aud": []string{"tokend"}}), nil},
		{"nbf in the past", es256(map[string]any{"nbf": in(-time.Minute)}), nil},
		{"nbf within the leeway", es256(map[string]any{"nbf": in(30 * time.Second)}), nil},
		{"no iat", es256(map[string]any{"iat": nil}), nil},

		{"another subject", es256(map[string]any{"sub": "dev-1"}), auth.ErrNotPermitted},
		{"subject with more before", es256(map[string]any{"sub": "x-ci-42"}), auth.ErrNotPermitted},
		{"subject with a slash", es256(map[string]any{"sub": "ci-42/x"}), auth.ErrNotPermitted},
		{"subject in another case", es256(map[string]any{"sub": "CI-42"}), auth.ErrNotPermitted},
		{"no subject", es256(map[string]any{"sub": nil}), auth.ErrCallerRejected},
		{"subject is not text", es256(map[string]any{"sub": 42}), auth.ErrCallerRejected},
		{"subject with a line feed", es256(map[string]any{"sub": "ci-42\nx"}), auth.ErrCallerRejected},
		{"subject too long", es256(map[string]any{"sub": "ci-" + strings.Repeat("x", 255)}), auth.ErrCallerRejected},
		{"another audience", es256(map[string]any{"aud": "other"}), auth.ErrCallerRejected},
		{"no audience", es256(map[string]any{"aud": nil}), auth.ErrCallerRejected},
		{"empty audience", es256(map[string]any{"aud": []string{}}), auth.ErrCallerRejected},
		{"two audiences", es256(map[string]any{"aud": []string{"tokend", "other"}}), auth.ErrCallerRejected},
		{"the same audience twice", es256(map[string]any{"aud": []string{"tokend", "tokend"}}), auth.ErrCallerRejected},
		{"another issuer", authtest.Sign(t, jwt.SigningMethodES256, "ec", stranger, other.Claims(nil)), auth.ErrCallerRejected},
		{"another issuer's key", authtest.Sign(t, jwt.SigningMethodES256, "ec", stranger, issuer.Claims(nil)), auth.ErrCallerRejected},
		{"another issuer's name", es256(map[string]any{"iss": other.URL}), auth.ErrCallerRejected},
		{"the issuer with a slash", es256(map[string]any{"iss": issuer.URL + "/"}), auth.ErrCallerRejected},
		{"issuer is not text", es256(map[string]any{"iss": 42}), auth.ErrMalformed},
		{"issuer is empty", es256(map[string]any{"iss": ""}), auth.ErrMalformed},
		{"issuer is null", authtest.Sign(t, jwt.SigningMethodES256, "ec", ec, jwt.MapClaims{"iss": nil}), auth.ErrMalformed},
		{"no issuer", es256(map[string]any{"iss": nil}), auth.ErrUnknownCaller}, // as an Atlas JWT, for which there is no rule
		{"expired", es256(map[string]any{"exp": in(-time.Second)}), auth.ErrCallerRejected},
		{"no exp", es256(map[string]any{"exp": nil}), auth.ErrCallerRejected},
		{"exp is zero", es256(map[string]any{"exp": 0}), auth.ErrCallerRejected},
		{"exp is not a number", es256(map[string]any{"exp": "never"}), auth.ErrCallerRejected},
		{"nbf in the future", es256(map[string]any{"nbf": in(2 * time.Minute)}), auth.ErrCallerRejected},
		{"nbf is not a number", es256(map[string]any{"nbf": "now"}), auth.ErrCallerRejected},
		{"iat in the future", es256(map[string]any{"iat": in(2 * time.Minute)}), auth.ErrCallerRejected},
		{"alg none", authtest.Sign(t, jwt.SigningMethodNone, "ec", jwt.UnsafeAllowNoneSignatureType, issuer.Claims(nil)) + "c2ln", auth.ErrCallerRejected},
		{"alg none without a signature", authtest.Sign(t, jwt.SigningMethodNone, "ec", jwt.UnsafeAllowNoneSignatureType, issuer.Claims(nil)), auth.ErrMalformed},
		{"HS256 with the public key as its secret", authtest.Sign(t, jwt.SigningMethodHS256, "rsa", publicPEM, issuer.Claims(nil)), auth.ErrCallerRejected},
		{"HS256 with the public key's bytes", authtest.Sign(t, jwt.SigningMethodHS256, "rsa", der, issuer.Claims(nil)), auth.ErrCallerRejected},
		{"HS256 without a kid", authtest.Sign(t, jwt.SigningMethodHS256, "", publicPEM, issuer.Claims(nil)), auth.ErrCallerRejected},
		{"a critical extension", critical(), auth.ErrCallerRejected},
		{"unknown kid", authtest.Sign(t, jwt.SigningMethodES256, "none", ec, issuer.Claims(nil)), auth.ErrCallerRejected},
		{"the wrong kid", authtest.Sign(t, jwt.SigningMethodES256, "rsa", ec, issuer.Claims(nil)), auth.ErrCallerRejected},
		{"another claim twice", signedClaims(t, ec, `{"iss":%q,"aud":"tokend","sub":"ci-42","exp":%d,"x":1,"x":2}`, issuer.URL), auth.ErrCallerRejected},
		{"tampered payload", tampered(), auth.ErrCallerRejected},
		{"tampered signature", es256(nil)[:len(es256(nil))-8] + "AAAAAAAA", auth.ErrCallerRejected},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			a := newAuthenticator(t, auth.Config{Policy: mustPolicy(t, oidcPolicy(issuer.URL)), RootCAs: issuer.RootCAs}.Impatient(time.Millisecond, 0))
			untilReady(t, a)
			got, err := create(t.Context(), a, tc.token)
			if !errors.Is(err, tc.want) || (err == nil) != (got.Profile == "acme") || got.JWT != "" {
				t.Errorf("got profile %q, %v; want %v", got.Profile, err, tc.want)
			}
			if err == nil && got.Caller.Name != issuer.URL+"#ci-42" {
				t.Errorf("the caller is %v", got.Caller)
			}
			if err != nil && strings.Contains(err.Error(), strings.Split(tc.token, ".")[1]) {
				t.Errorf("the error quotes the token: %v", err)
			}
			// The scheme word JWT always means Atlas, whatever is behind it.
			if _, err := a.Authenticate(call(t.Context(), nil, auth.Header, "JWT "+tc.token), "CreateToken"); !errors.Is(err, auth.ErrUnknownCaller) && !errors.Is(err, auth.ErrMalformed) {
				t.Errorf("with the scheme JWT: %v, want ErrUnknownCaller", err)
			}
		})
	}
}

// signedClaims signs a text unchanged. The format has the issuer and an expiry in an hour.
func signedClaims(t *testing.T, key crypto.Signer, format, issuer string) string {
	t.Helper()
	encode := base64.RawURLEncoding.EncodeToString
	text := encode([]byte(`{"alg":"ES256","kid":"ec"}`)) + "." + encode(fmt.Appendf(nil, format, issuer, time.Now().Add(time.Hour).Unix()))
	signature, err := jwt.SigningMethodES256.Sign(text, key)
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + encode(signature)
}

// TestFault90 checks that a token with a claim in another case, or twice, is refused.
func TestFault90(t *testing.T) {
	t.Parallel()
	issuer, key := authtest.NewIssuer(t), authtest.NewKey(t)
	issuer.Publish(map[string]crypto.Signer{"ec": key})
	a := newAuthenticator(t, auth.Config{Policy: mustPolicy(t, oidcPolicy(issuer.URL)), RootCAs: issuer.RootCAs}.Impatient(time.Millisecond, 0))
	untilReady(t, a)
	good := signedClaims(t, key, `{"iss":%q,"aud":"tokend","exp":%d,"sub":"ci-42","SUBJECT":"dev-1"}`, issuer.URL)
	if _, err := create(t.Context(), a, good); err != nil {
		t.Errorf("a token with another claim of its own: %v", err)
	}
	for _, claims := range []string{
		`"sub":"dev-1","SUB":"ci-42"`,
		`"SUB":"ci-42","sub":"dev-1"`,
		`"sub":"ci-42","Sub":"dev-1"`,
		`"Sub":"ci-42"`,
		`"\u017fub":"ci-42"`, // a long s, which folds to an s
		`"sub":"dev-1","sub":"ci-42"`,
		`"sub":"ci-42","sub":"ci-42"`,
		`"sub":"dev-1","s\u0075b":"ci-42"`,
		`"sub":"ci-42","Exp":4000000000`,
		`"sub":"ci-42","exp":4000000000`,
		`"sub":"ci-42","AUD":"tokend"`,
		`"sub":"ci-42","aud":"tokend"`,
		`"sub":"ci-42","Nbf":0`,
		`"sub":"ci-42","ISS":"https://issuer.internal"`,
	} {
		for _, format := range []string{`{"iss":%q,"aud":"tokend","exp":%d,` + claims + `}`, `{` + claims + `,"iss":%q,"aud":"tokend","exp":%d}`} {
			grant, err := create(t.Context(), a, signedClaims(t, key, format, issuer.URL))
			if !errors.Is(err, auth.ErrCallerRejected) || grant.Profile != "" {
				t.Errorf("%s: got %+v, %v; want ErrCallerRejected", format, grant.Caller, err)
			}
		}
	}
}

func TestPeekIssuer(t *testing.T) {
	for _, tc := range []struct {
		payload, want string
		err           error
	}{
		{`{"iss":"https://a"}`, "https://a", nil},
		{`{}`, "", nil},
		{`{"user_id":"u"}`, "", nil},
		{`[]`, "", nil},
		{``, "", nil},
		{`not JSON`, "", nil},
		{`{"iss":1}`, "", auth.ErrMalformed},
		{`{"iss":null}`, "", auth.ErrMalformed},
		{`{"iss":""}`, "", auth.ErrMalformed},
		{`{"iss":["https://a"]}`, "", auth.ErrMalformed},
		{`{"iss":"https://a","iss":"https://b"}`, "", auth.ErrCallerRejected},
		{`{"iss":"https://a","ISS":"https://b"}`, "", auth.ErrCallerRejected},
		{`{"Iss":"https://a"}`, "", auth.ErrCallerRejected},
	} {
		got, err := auth.PeekIssuer("h." + base64.RawURLEncoding.EncodeToString([]byte(tc.payload)) + ".s")
		if got != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("%s: got %q, %v; want %q, %v", tc.payload, got, err, tc.want, tc.err)
		}
	}
}

// TestPeekIssuerOfNoJWT checks that text that is not base64url has no issuer.
func TestPeekIssuerOfNoJWT(t *testing.T) {
	for _, token := range []string{"", "a", "a.b", "h.eyJpc3MiOiJhIn0=.s", "h." + base64.StdEncoding.EncodeToString([]byte(`{"iss":"???>>>"}`)) + ".s"} {
		if got, err := auth.PeekIssuer(token); got != "" || err != nil {
			t.Errorf("%q: got %q, %v", token, got, err)
		}
	}
}

// FuzzPeekIssuer checks that no text panics or gives both an issuer and an error.
func FuzzPeekIssuer(f *testing.F) {
	for _, payload := range []string{`{"iss":"https://a"}`, `{"iss":1}`, `{"ISS":"x"}`, `{"iss":"a","iss":2}`, `[]`, ``} {
		f.Add("h." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".s")
	}
	f.Add("...")
	f.Add("é")
	f.Fuzz(func(t *testing.T, token string) {
		issuer, err := auth.PeekIssuer(token)
		if err != nil && (issuer != "" || !errors.Is(err, auth.ErrMalformed) && !errors.Is(err, auth.ErrCallerRejected)) {
			t.Errorf("got %q, %v", issuer, err)
		}
	})
}
