package auth_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
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

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth/authtest"
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

// TestKeyRotation checks that a new key is found, and that a withdrawn one is no longer accepted.
func TestKeyRotation(t *testing.T) {
	issuer := authtest.NewIssuer(t)
	first, second := authtest.NewKey(t), authtest.NewKey(t)
	issuer.Publish(map[string]crypto.Signer{"1": first})
	a := newAuthenticator(t, auth.Config{Policy: mustPolicy(t, oidcPolicy(issuer.URL)), RootCAs: issuer.RootCAs}.Impatient(time.Millisecond, 0))
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

// becomes waits for the outcome: a call right after another may get the keys fetched for that one.
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

// TestKeysAreFetchedSeldom checks that neither good tokens nor a flood of bad ones cause a flood of
// requests to the issuer, and that good ones are accepted meanwhile.
func TestKeysAreFetchedSeldom(t *testing.T) {
	issuer := authtest.NewIssuer(t)
	key := authtest.NewKey(t)
	issuer.Publish(map[string]crypto.Signer{"k": key})
	a := newAuthenticator(t, auth.Config{Policy: mustPolicy(t, oidcPolicy(issuer.URL)), RootCAs: issuer.RootCAs}.Impatient(time.Millisecond, time.Hour))
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

// TestDiscoveryIsRetried checks that callers are refused until the issuer answers, and then
// accepted without a restart.
func TestDiscoveryIsRetried(t *testing.T) {
	broken := map[string]http.HandlerFunc{
		"status 500":            func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "hunter2", http.StatusInternalServerError) },
		"not JSON":              func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
		"too large":             func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 2<<20)) },
		"another issuer":        document(`{"issuer":"https://evil.internal","jwks_uri":"https://evil.internal/keys"}`),
		"keys without TLS":      document(`{"issuer":"ISSUER","jwks_uri":"http://127.0.0.1:1/keys"}`),
		"keys at no URL":        document(`{"issuer":"ISSUER","jwks_uri":"https://issuer internal/keys"}`),
		"no keys":               document(`{"issuer":"ISSUER"}`),
		"redirect":              func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"closes the connection": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"truncated":             func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "100") },
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
				Policy: mustPolicy(t, oidcPolicy(issuer.URL)), RootCAs: issuer.RootCAs,
				Logger: slog.New(slog.NewTextHandler(&logged, nil)),
			}.Impatient(time.Millisecond, 0))
			token := authtest.Sign(t, jwt.SigningMethodES256, "k", key, issuer.Claims(nil))
			for range 3 { // it tries again
				<-asked
				if got, err := create(t.Context(), a, token); !errors.Is(err, auth.ErrCallerCheckUnavailable) || got.Profile != "" {
					t.Fatalf("got %+v, %v; want ErrCallerCheckUnavailable", got, err)
				}
			}
			if err := a.Check(); err == nil || !strings.Contains(err.Error(), issuer.URL) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("readiness says %v", err)
			}
			if err := a.Check(); name == "keys without TLS" && !strings.Contains(err.Error(), "must be at https URLs") || name == "redirect" && !strings.Contains(err.Error(), "status 302") {
				t.Errorf("a request went where it must not: %v", err)
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

// TestKeysCannotBeFetched checks that a failed fetch of the keys is not the caller's fault.
func TestKeysCannotBeFetched(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"status 503": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		"not JSON":   func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hunter2") },
		"redirect":   func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
	} {
		t.Run(name, func(t *testing.T) {
			issuer := authtest.NewIssuer(t)
			first, second := authtest.NewKey(t), authtest.NewKey(t)
			issuer.Publish(map[string]crypto.Signer{"1": first})
			issuer.Answer(authtest.PathKeys, handler)
			a := newAuthenticator(t, auth.Config{Policy: mustPolicy(t, oidcPolicy(issuer.URL)), RootCAs: issuer.RootCAs}.Impatient(time.Millisecond, 0))
			known := authtest.Sign(t, jwt.SigningMethodES256, "1", first, issuer.Claims(nil))
			fresh := authtest.Sign(t, jwt.SigningMethodES256, "2", second, issuer.Claims(nil))
			for issuer.Fetches() < 2 { // it tries again
				if _, err := create(t.Context(), a, known); !errors.Is(err, auth.ErrCallerCheckUnavailable) || strings.Contains(err.Error(), "hunter2") {
					t.Fatalf("from the start: %v, want ErrCallerCheckUnavailable", err)
				}
			}
			if err := a.Check(); err == nil || !strings.Contains(err.Error(), "keys") || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("readiness says %v", err)
			}
			if status := a.Issuers()[issuer.URL]; status.OK || !status.Keys.IsZero() {
				t.Errorf("status without keys: %+v", status)
			}
			issuer.Answer(authtest.PathKeys, nil)
			untilReady(t, a)
			if status := a.Issuers()[issuer.URL]; !status.OK || status.Keys.IsZero() {
				t.Errorf("status with keys: %+v", status)
			}
			becomes(t, a, known, nil)

			issuer.Answer(authtest.PathKeys, handler)
			issuer.Publish(map[string]crypto.Signer{"1": first, "2": second})
			if _, err := create(t.Context(), a, fresh); !errors.Is(err, auth.ErrCallerCheckUnavailable) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("a key that is not known yet: %v, want ErrCallerCheckUnavailable", err)
			}
			if _, err := create(t.Context(), a, known); err != nil || a.Check() != nil {
				t.Errorf("a key that is known: %v; readiness says %v", err, a.Check())
			}
			if status := a.Issuers()[issuer.URL]; status.OK || status.Keys.IsZero() {
				t.Errorf("status with old keys: %+v", status)
			}
			issuer.Answer(authtest.PathKeys, nil)
			becomes(t, a, fresh, nil)
		})
	}
}

// TestKeyNotUnderstood checks that an unreadable key does not affect the others (RFC 7517 section
// 5).
func TestKeyNotUnderstood(t *testing.T) {
	issuer := authtest.NewIssuer(t)
	key := authtest.NewKey(t)
	issuer.Publish(map[string]crypto.Signer{"k": key})
	issuer.Answer(authtest.PathKeys, func(w http.ResponseWriter, _ *http.Request) {
		var keys strings.Builder
		issuer.WriteKeys(&keys)
		_, _ = io.WriteString(w, strings.Replace(keys.String(), "[", `[{"kty":"RSA","kid":"no exponent","n":"AQ"},{"kty":"new"},`, 1))
	})
	a := newAuthenticator(t, auth.Config{Policy: mustPolicy(t, oidcPolicy(issuer.URL)), RootCAs: issuer.RootCAs}.Impatient(time.Millisecond, 0))
	untilReady(t, a)
	if _, err := create(t.Context(), a, authtest.Sign(t, jwt.SigningMethodES256, "k", key, issuer.Claims(nil))); err != nil {
		t.Error(err)
	}
}

// rotated returns an issuer with a key that the Authenticator does not know yet, a token signed
// with it, and one signed with the known key. The issuer answers requests for its keys with answer.
func rotated(t *testing.T, answer func(*authtest.Issuer) http.HandlerFunc) (a *auth.Authenticator, issuer *authtest.Issuer, fresh, known string) {
	t.Helper()
	issuer = authtest.NewIssuer(t)
	first, second := authtest.NewKey(t), authtest.NewKey(t)
	issuer.Publish(map[string]crypto.Signer{"1": first})
	a = newAuthenticator(t, auth.Config{Policy: mustPolicy(t, oidcPolicy(issuer.URL)), RootCAs: issuer.RootCAs}.Impatient(time.Millisecond, 0))
	untilReady(t, a)
	issuer.Publish(map[string]crypto.Signer{"1": first, "2": second})
	issuer.Answer(authtest.PathKeys, answer(issuer))
	return a, issuer, authtest.Sign(t, jwt.SigningMethodES256, "2", second, issuer.Claims(nil)), authtest.Sign(t, jwt.SigningMethodES256, "1", first, issuer.Claims(nil))
}

// TestWaitersKeepTheirDeadlines checks that one waiter can leave while the keys are fetched, that
// another gets them from the same fetch, and that a token with a known key does not wait.
func TestWaitersKeepTheirDeadlines(t *testing.T) {
	asked, release := make(chan struct{}), make(chan struct{})
	a, issuer, fresh, known := rotated(t, func(issuer *authtest.Issuer) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			close(asked) // a second time would panic
			<-release
			issuer.WriteKeys(w)
		}
	})
	ctx, leave := context.WithCancel(t.Context())
	left, stayed := make(chan error, 1), make(chan error, 1)
	go func() { _, err := create(ctx, a, fresh); left <- err }()
	<-asked
	go func() { _, err := create(t.Context(), a, fresh); stayed <- err }()
	if _, err := create(t.Context(), a, known); err != nil {
		t.Errorf("a known key meanwhile: %v", err)
	}
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) || errors.Is(err, auth.ErrCallerRejected) {
		t.Errorf("the waiter that left got %v", err)
	}
	close(release)
	if err := <-stayed; err != nil {
		t.Errorf("the waiter that stayed got %v", err)
	}
	if n := issuer.Fetches(); n != 2 {
		t.Errorf("the keys were fetched %d times, want twice", n)
	}
}

// TestCloseEndsAFetch checks that Close does not wait for an issuer that does not answer.
func TestCloseEndsAFetch(t *testing.T) {
	asked := make(chan struct{})
	a, issuer, fresh, _ := rotated(t, func(*authtest.Issuer) http.HandlerFunc {
		return func(_ http.ResponseWriter, r *http.Request) {
			close(asked)
			<-r.Context().Done()
		}
	})
	done := make(chan error, 1)
	go func() { _, err := create(context.Background(), a, fresh); done <- err }()
	<-asked
	closing := time.Now()
	a.Close()
	if err := <-done; !errors.Is(err, auth.ErrCallerCheckUnavailable) {
		t.Errorf("got %v, want ErrCallerCheckUnavailable", err)
	}
	if d := time.Since(closing); d > 3*time.Second { // the fetch may take 5 s
		t.Errorf("it took %v", d)
	}
	if err := setPolicy(a, mustPolicy(t, oidcPolicy(issuer.URL))); err == nil {
		t.Error("a policy was set after Close")
	}
}

// TestIssuerNotTrusted checks that the issuer's certificate is verified.
func TestIssuerNotTrusted(t *testing.T) {
	issuer := authtest.NewIssuer(t)
	a := newAuthenticator(t, auth.Config{Policy: mustPolicy(t, oidcPolicy(issuer.URL)), RootCAs: x509.NewCertPool}.Impatient(time.Millisecond, 0))
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

// TestCheckIssuer checks that CheckIssuer agrees with an Authenticator.
func TestCheckIssuer(t *testing.T) {
	t.Parallel()
	issuer := authtest.NewIssuer(t)
	if n, err := auth.CheckIssuer(t.Context(), issuer.URL, issuer.RootCAs); n != 0 || !errors.Is(err, auth.ErrNoUsableKey) {
		t.Errorf("without keys: %d, %v", n, err)
	}
	issuer.Publish(map[string]crypto.Signer{"k": authtest.NewKey(t)})
	if n, err := auth.CheckIssuer(t.Context(), issuer.URL, issuer.RootCAs); n != 1 || err != nil {
		t.Errorf("with one: %d, %v", n, err)
	}
	if _, err := auth.CheckIssuer(t.Context(), issuer.URL, nil); err == nil {
		t.Error("it is trusted without its authority")
	}
	if _, err := auth.CheckIssuer(t.Context(), issuer.URL+"/other", issuer.RootCAs); err == nil {
		t.Error("its documents are another's")
	}
}

// TestFault72 checks that a bounded number of calls wait for an issuer that hangs, and that others,
// with a known key or beyond the limit, are answered at once.
func TestFault72(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	a, _, fresh, known := rotated(t, func(issuer *authtest.Issuer) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			<-release
			issuer.WriteKeys(w)
		}
	})
	const calls = 100
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, calls)
	for range calls {
		go func() {
			_, err := create(ctx, a, fresh)
			done <- err
		}()
	}
	for range calls - auth.MaxIssuerWaits {
		if err := <-done; !errors.Is(err, auth.ErrCallerCheckUnavailable) {
			t.Errorf("a call beyond the limit: %v, want ErrCallerCheckUnavailable", err)
		}
	}
	if _, err := create(ctx, a, known); err != nil {
		t.Errorf("a caller with a known key: %v", err)
	}
	select {
	case err := <-done:
		t.Errorf("a call within the limit did not wait: %v", err)
	default:
	}
	close(release)
	for range auth.MaxIssuerWaits {
		if err := <-done; err != nil {
			t.Errorf("a call within the limit: %v", err)
		}
	}
}

// TestFault91 checks that an answer without a usable key is a failed fetch: the keys in use stay,
// and the issuer counts as down.
func TestFault91(t *testing.T) {
	t.Parallel()
	for name, keys := range map[string]string{
		"no list":       `{}`,
		"empty":         `{"keys":[]}`,
		"unknown kind":  `{"keys":[{"kty":"new"}]}`,
		"symmetric key": `{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, issuer, fresh, known := rotated(t, func(*authtest.Issuer) http.HandlerFunc { return document(keys) })
			if _, err := create(t.Context(), a, fresh); !errors.Is(err, auth.ErrCallerCheckUnavailable) || !errors.Is(err, auth.ErrNoUsableKey) {
				t.Errorf("a caller with an unknown key: %v", err)
			}
			if _, err := create(t.Context(), a, known); err != nil {
				t.Errorf("a caller with a known key: %v", err)
			}
			if status := a.Issuers()[issuer.URL]; status.OK || status.Keys.IsZero() {
				t.Errorf("the issuer's status is %+v, want down with keys", status)
			}
		})
	}
}
