package auth_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/ForstaLabs/ephemeral-token-service/server/auth"
	"github.com/ForstaLabs/ephemeral-token-service/server/auth/authtest"
)

func oidcPolicy(issuer string) string {
	return fmt.Sprintf(`
profiles:
  acme: {userauthtoken_file: /run/secrets/acme}
callers:
  - {oidc: {issuer: %q, audience: tokend, subject: "ci-*"}, allow: [CreateToken], profile: acme}
`, issuer)
}

// create authenticates a CreateToken with a Bearer token.
func create(ctx context.Context, a *auth.Authenticator, token string) (auth.Grant, error) {
	return a.Authenticate(call(ctx, nil, auth.Header, "Bearer "+token), "CreateToken")
}

// TestOIDCTokens is every way for a token to be accepted, or not.
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
		{"unknown kid", authtest.Sign(t, jwt.SigningMethodES256, "none", ec, issuer.Claims(nil)), auth.ErrCallerRejected},
		{"the wrong kid", authtest.Sign(t, jwt.SigningMethodES256, "rsa", ec, issuer.Claims(nil)), auth.ErrCallerRejected},
		{"tampered payload", tampered(), auth.ErrCallerRejected},
		{"tampered signature", es256(nil)[:len(es256(nil))-8] + "AAAAAAAA", auth.ErrCallerRejected},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			a := newAuthenticator(t, auth.Config{Policy: mustPolicy(t, oidcPolicy(issuer.URL)), HTTPClient: issuer.Client()}.Impatient(time.Millisecond, 0))
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

// TestKeyRotation: a key that the issuer adds is found, one that it takes away no longer counts once that is known.
func TestKeyRotation(t *testing.T) {
	issuer := authtest.NewIssuer(t)
	first, second := authtest.NewKey(t), authtest.NewKey(t)
	issuer.Publish(map[string]crypto.Signer{"1": first})
	a := newAuthenticator(t, auth.Config{Policy: mustPolicy(t, oidcPolicy(issuer.URL)), HTTPClient: issuer.Client()}.Impatient(time.Millisecond, 0))
	untilReady(t, a)
	old := authtest.Sign(t, jwt.SigningMethodES256, "1", first, issuer.Claims(nil))
	fresh := authtest.Sign(t, jwt.SigningMethodES256, "2", second, issuer.Claims(nil))
	for _, step := range []struct {
		name, token string
		want        error
	}{
		{"first key", old, nil},
		{"second key, not published", fresh, auth.ErrCallerRejected},
		{"second key", fresh, nil},
		{"first key, withdrawn", old, auth.ErrCallerRejected},
	} {
		if step.name == "second key" {
			issuer.Publish(map[string]crypto.Signer{"2": second})
		}
		t.Log(step.name)
		becomes(t, a, step.token, step.want)
	}
}

// becomes waits for the outcome: a call that comes right after another may still be given the keys that were fetched for
// that one.
func becomes(t *testing.T, a *auth.Authenticator, token string, want error) {
	t.Helper()
	for start := time.Now(); ; <-time.After(time.Millisecond) {
		_, err := create(t.Context(), a, token)
		if errors.Is(err, want) {
			return
		}
		if time.Since(start) > 10*time.Second {
			t.Fatalf("got %v, want %v", err, want)
		}
	}
}

// TestKeysAreFetchedSeldom: neither good tokens nor a flood of bad ones, sent at once or one after the other, make a flood
// of requests to the issuer; and the good ones are accepted meanwhile.
func TestKeysAreFetchedSeldom(t *testing.T) {
	issuer := authtest.NewIssuer(t)
	key := authtest.NewKey(t)
	issuer.Publish(map[string]crypto.Signer{"k": key})
	a := newAuthenticator(t, auth.Config{Policy: mustPolicy(t, oidcPolicy(issuer.URL)), HTTPClient: issuer.Client()}.Impatient(time.Millisecond, time.Hour))
	untilReady(t, a)
	good := authtest.Sign(t, jwt.SigningMethodES256, "k", key, issuer.Claims(nil))
	bad := authtest.Sign(t, jwt.SigningMethodES256, "other", key, issuer.Claims(nil))
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 10 {
				if _, err := create(t.Context(), a, good); err != nil {
					t.Errorf("a good token: %v", err)
				}
				if _, err := create(t.Context(), a, bad); !errors.Is(err, auth.ErrCallerRejected) {
					t.Errorf("a bad token: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if n := issuer.Fetches(); n != 1 {
		t.Errorf("the keys were fetched %d times, want once", n)
	}
}

// TestDiscoveryIsRetried: until the issuer answers, nobody is let in; then everybody is, without a restart.
func TestDiscoveryIsRetried(t *testing.T) {
	broken := map[string]http.HandlerFunc{
		"status 500":          func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "hunter2", http.StatusInternalServerError) },
		"not JSON":            func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
		"too large":           func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 2<<20)) },
		"another issuer":      document(`{"issuer":"https://evil.internal","jwks_uri":"https://evil.internal/keys"}`),
		"keys without TLS":    document(`{"issuer":"ISSUER","jwks_uri":"http://127.0.0.1:1/keys"}`),
		"no keys":             document(`{"issuer":"ISSUER"}`),
		"redirect":            func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"closes the line":     func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"promises and leaves": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "100") },
	}
	for name, handler := range broken {
		t.Run(name, func(t *testing.T) {
			issuer := authtest.NewIssuer(t)
			key := authtest.NewKey(t)
			issuer.Publish(map[string]crypto.Signer{"k": key})
			asked := make(chan struct{}, 100)
			issuer.Answer(authtest.PathDiscovery, func(w http.ResponseWriter, r *http.Request) {
				select {
				case asked <- struct{}{}:
				default:
				}
				handler(w, r)
			})
			var logged syncBuffer
			a := newAuthenticator(t, auth.Config{
				Policy: mustPolicy(t, oidcPolicy(issuer.URL)), HTTPClient: issuer.Client(),
				Logger: slog.New(slog.NewTextHandler(&logged, nil)),
			}.Impatient(time.Millisecond, 0))
			token := authtest.Sign(t, jwt.SigningMethodES256, "k", key, issuer.Claims(nil))
			for range 3 { // it goes on asking
				<-asked
				if got, err := create(t.Context(), a, token); !errors.Is(err, auth.ErrCallerCheckUnavailable) || got.Profile != "" {
					t.Fatalf("got %+v, %v; want ErrCallerCheckUnavailable", got, err)
				}
			}
			if err := a.Check(); err == nil || !strings.Contains(err.Error(), issuer.URL) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("readiness says %v", err)
			}
			issuer.Answer(authtest.PathDiscovery, nil)
			untilReady(t, a)
			if got, err := create(t.Context(), a, token); err != nil || got.Profile != "acme" {
				t.Errorf("got %+v, %v", got, err)
			}
			if text := logged.String(); strings.Count(text, "cannot be used") != 1 || strings.Contains(text, "hunter2") {
				t.Errorf("logged:\n%s", text)
			}
		})
	}
}

// document answers with JSON in which ISSUER is the server's own URL.
func document(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, strings.ReplaceAll(text, "ISSUER", "https://"+r.Host))
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestKeysCannotBeFetched: the issuer is known, its keys are not. That is no word against the caller.
func TestKeysCannotBeFetched(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"status 503": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		"not JSON":   func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hunter2") },
		"redirect":   func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
	} {
		t.Run(name, func(t *testing.T) {
			issuer := authtest.NewIssuer(t)
			key := authtest.NewKey(t)
			issuer.Publish(map[string]crypto.Signer{"k": key})
			issuer.Answer(authtest.PathKeys, handler)
			a := newAuthenticator(t, auth.Config{Policy: mustPolicy(t, oidcPolicy(issuer.URL)), HTTPClient: issuer.Client()}.Impatient(time.Millisecond, 0))
			untilReady(t, a)
			token := authtest.Sign(t, jwt.SigningMethodES256, "k", key, issuer.Claims(nil))
			if _, err := create(t.Context(), a, token); !errors.Is(err, auth.ErrCallerCheckUnavailable) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("got %v, want ErrCallerCheckUnavailable", err)
			}
			issuer.Answer(authtest.PathKeys, nil)
			becomes(t, a, token, nil)
		})
	}
}

// TestWaitersKeepTheirDeadlines: one leaves while the keys are fetched, the other gets them from the same fetch.
func TestWaitersKeepTheirDeadlines(t *testing.T) {
	issuer := authtest.NewIssuer(t)
	key := authtest.NewKey(t)
	issuer.Publish(map[string]crypto.Signer{"k": key})
	asked, release := make(chan struct{}), make(chan struct{})
	issuer.Answer(authtest.PathKeys, func(w http.ResponseWriter, _ *http.Request) {
		close(asked) // a second time would panic
		<-release
		issuer.WriteKeys(w)
	})
	a := newAuthenticator(t, auth.Config{Policy: mustPolicy(t, oidcPolicy(issuer.URL)), HTTPClient: issuer.Client()}.Impatient(time.Millisecond, time.Hour))
	untilReady(t, a)
	token := authtest.Sign(t, jwt.SigningMethodES256, "k", key, issuer.Claims(nil))

	ctx, leave := context.WithCancel(t.Context())
	left, stayed := make(chan error, 1), make(chan error, 1)
	go func() { _, err := create(ctx, a, token); left <- err }()
	<-asked
	go func() { _, err := create(t.Context(), a, token); stayed <- err }()
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) || errors.Is(err, auth.ErrCallerRejected) {
		t.Errorf("who left got %v", err)
	}
	close(release)
	if err := <-stayed; err != nil {
		t.Errorf("who stayed got %v", err)
	}
	if n := issuer.Fetches(); n != 1 {
		t.Errorf("the keys were fetched %d times", n)
	}
}

// TestCloseEndsAFetch: an issuer that does not answer holds nothing up.
func TestCloseEndsAFetch(t *testing.T) {
	issuer := authtest.NewIssuer(t)
	key := authtest.NewKey(t)
	asked := make(chan struct{})
	issuer.Answer(authtest.PathKeys, func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done()
	})
	a := newAuthenticator(t, auth.Config{Policy: mustPolicy(t, oidcPolicy(issuer.URL)), HTTPClient: issuer.Client()})
	untilReady(t, a)
	done := make(chan error, 1)
	token := authtest.Sign(t, jwt.SigningMethodES256, "k", key, issuer.Claims(nil))
	go func() { _, err := create(context.Background(), a, token); done <- err }()
	<-asked
	closing := time.Now()
	a.Close()
	if err := <-done; !errors.Is(err, auth.ErrCallerCheckUnavailable) {
		t.Errorf("got %v, want ErrCallerCheckUnavailable", err)
	}
	if d := time.Since(closing); d > 3*time.Second { // the fetch has five to itself
		t.Errorf("it took %v", d)
	}
	if err := a.SetPolicy(mustPolicy(t, oidcPolicy(issuer.URL))); err == nil {
		t.Error("a policy was set after Close")
	}
}

// TestSetPolicy: issuers come and go with the policy, and one that stays keeps its keys.
func TestSetPolicy(t *testing.T) {
	one, two := authtest.NewIssuer(t), authtest.NewIssuer(t)
	key := authtest.NewKey(t)
	pool := x509.NewCertPool()
	for _, i := range []*authtest.Issuer{one, two} {
		i.Publish(map[string]crypto.Signer{"k": key})
		pool.AddCert(i.Certificate())
	}
	client := one.Client()
	client.Transport.(*http.Transport).TLSClientConfig.RootCAs = pool
	a := newAuthenticator(t, auth.Config{Policy: mustPolicy(t, oidcPolicy(one.URL)), HTTPClient: client}.Impatient(time.Millisecond, 0))
	untilReady(t, a)
	tokenOne := authtest.Sign(t, jwt.SigningMethodES256, "k", key, one.Claims(nil))
	tokenTwo := authtest.Sign(t, jwt.SigningMethodES256, "k", key, two.Claims(nil))
	both := oidcPolicy(one.URL) + fmt.Sprintf("  - {oidc: {issuer: %q, audience: tokend, subject: ci-42}, allow: [CreateToken], profile: acme}\n", two.URL)

	for _, step := range []struct {
		name, policy string
		one, two     error
	}{
		{"the first", "", nil, auth.ErrCallerRejected},
		{"both", both, nil, nil},
		{"the first stays", oidcPolicy(one.URL), nil, auth.ErrCallerRejected},
		{"the second comes back", both, nil, nil},
		{"the second only", oidcPolicy(two.URL), auth.ErrCallerRejected, nil},
		{"another audience", strings.Replace(oidcPolicy(two.URL), "tokend", "other", 1), auth.ErrCallerRejected, auth.ErrCallerRejected},
	} {
		if step.policy != "" {
			if err := a.SetPolicy(mustPolicy(t, step.policy)); err != nil {
				t.Fatal(err)
			}
			untilReady(t, a)
		}
		if _, err := create(t.Context(), a, tokenOne); !errors.Is(err, step.one) {
			t.Errorf("%s: issuer one: %v, want %v", step.name, err, step.one)
		}
		if _, err := create(t.Context(), a, tokenTwo); !errors.Is(err, step.two) {
			t.Errorf("%s: issuer two: %v, want %v", step.name, err, step.two)
		}
	}
	if n := one.Fetches(); n != 1 {
		t.Errorf("the first issuer's keys were fetched %d times, want once", n)
	}
	if err := a.SetPolicy(nil); err == nil {
		t.Error("no policy replaced a policy")
	}
}

// TestSetPolicyUnderLoad: no call of a caller that both policies let in fails.
func TestSetPolicyUnderLoad(t *testing.T) {
	issuer := authtest.NewIssuer(t)
	key := authtest.NewKey(t)
	issuer.Publish(map[string]crypto.Signer{"k": key})
	policies := []*auth.Policy{mustPolicy(t, oidcPolicy(issuer.URL)), mustPolicy(t, testPolicy(issuer.URL, true))}
	a := newAuthenticator(t, auth.Config{Policy: policies[0], HTTPClient: issuer.Client()})
	untilReady(t, a)
	token := authtest.Sign(t, jwt.SigningMethodES256, "k", key, issuer.Claims(nil))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := create(t.Context(), a, token); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 500 {
		if err := a.SetPolicy(policies[i%2]); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	wg.Wait()
}

// TestIssuerNotTrusted: its certificate is checked as everybody's.
func TestIssuerNotTrusted(t *testing.T) {
	issuer := authtest.NewIssuer(t)
	a := newAuthenticator(t, auth.Config{Policy: mustPolicy(t, oidcPolicy(issuer.URL)), HTTPClient: &http.Client{Transport: &http.Transport{}}}.Impatient(time.Millisecond, 0))
	deadline := time.After(10 * time.Second)
	for {
		if err := a.Check(); err != nil && strings.Contains(err.Error(), "certificate") {
			break
		}
		select {
		case <-deadline:
			t.Fatalf("readiness says %v", a.Check())
		case <-time.After(time.Millisecond):
		}
	}
	token := authtest.Sign(t, jwt.SigningMethodES256, "k", authtest.NewKey(t), issuer.Claims(nil))
	if _, err := create(t.Context(), a, token); !errors.Is(err, auth.ErrCallerCheckUnavailable) {
		t.Errorf("got %v, want ErrCallerCheckUnavailable", err)
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
	} {
		got, err := auth.PeekIssuer("h." + base64.RawURLEncoding.EncodeToString([]byte(tc.payload)) + ".s")
		if got != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("%s: got %q, %v; want %q, %v", tc.payload, got, err, tc.want, tc.err)
		}
	}
}

// FuzzPeekIssuer: any text at all is read without a panic, and never as an issuer and an error at once.
func FuzzPeekIssuer(f *testing.F) {
	for _, payload := range []string{`{"iss":"https://a"}`, `{"iss":1}`, `{"ISS":"x"}`, `{"iss":"a","iss":2}`, `[]`, ``} {
		f.Add("h." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".s")
	}
	f.Add("...")
	f.Add("é")
	f.Fuzz(func(t *testing.T, token string) {
		issuer, err := auth.PeekIssuer(token)
		if err != nil && (issuer != "" || !errors.Is(err, auth.ErrMalformed)) {
			t.Errorf("got %q, %v", issuer, err)
		}
	})
}
