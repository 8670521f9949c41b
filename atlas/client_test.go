package atlas_test

import (
	"crypto/x509"
	"errors"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

func TestNew(t *testing.T) {
	for _, tc := range []struct {
		name   string
		config atlas.Config
		want   []string // one for each mistake; none: it is valid
	}{
		{"default", atlas.Config{BaseURL: "https://atlas.forsta.io/v1"}, nil},
		{"slash at the end", atlas.Config{BaseURL: "https://atlas.forsta.io/v1/"}, nil},
		{"no path", atlas.Config{BaseURL: "https://atlas.forsta.io"}, nil},
		{"port", atlas.Config{BaseURL: "https://[::1]:65535"}, nil},
		{"scheme in capitals", atlas.Config{BaseURL: "HTTPS://atlas.forsta.io"}, nil},
		{"all set", atlas.Config{BaseURL: "https://a", Timeout: time.Second, MaxConns: 1, UserAgent: "x/1 (y; ~)"}, nil},

		{"empty", atlas.Config{}, []string{"the base URL is empty"}},
		{"not a URL", atlas.Config{BaseURL: "https://user:planted@a b/%zz"}, []string{"the base URL is not a URL"}},
		{"plain HTTP", atlas.Config{BaseURL: "http://atlas.forsta.io/v1"}, []string{"the base URL does not begin with https://"}},
		{"no scheme", atlas.Config{BaseURL: "atlas.forsta.io/v1"}, []string{"https://", "no host"}},
		{"no host", atlas.Config{BaseURL: "https:///v1"}, []string{"the base URL has no host"}},
		{"port only", atlas.Config{BaseURL: "https://:443"}, []string{"the base URL has no host"}},
		{"port 0", atlas.Config{BaseURL: "https://a:0"}, []string{"port"}},
		{"port too large", atlas.Config{BaseURL: "https://a:65536"}, []string{"port"}},
		{"user", atlas.Config{BaseURL: "https://user:planted@a"}, []string{"the base URL has a user or password"}},
		{"query", atlas.Config{BaseURL: "https://a/v1?planted=1"}, []string{"the base URL has a query"}},
		{"empty query", atlas.Config{BaseURL: "https://a/v1?"}, []string{"the base URL has a query"}},
		{"fragment", atlas.Config{BaseURL: "https://a/v1#planted"}, []string{"the base URL has a fragment"}},
		{"empty fragment", atlas.Config{BaseURL: "https://a/v1#"}, []string{"the base URL has a fragment"}},
		{"timeout", atlas.Config{BaseURL: "https://a", Timeout: -1}, []string{"Timeout is -1ns"}},
		{"connections", atlas.Config{BaseURL: "https://a", MaxConns: -1}, []string{"MaxConns is -1"}},
		{"user agent", atlas.Config{BaseURL: "https://a", UserAgent: "x\r\nplanted: 1"}, []string{"UserAgent has characters"}},
		{
			"everything",
			atlas.Config{BaseURL: "http://u@:1?#", Timeout: -1, MaxConns: -1, UserAgent: "ä"},
			[]string{"https://", "no host", "user or password", "query", "fragment", "Timeout", "MaxConns", "UserAgent"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := atlas.New(tc.config)
			if len(tc.want) == 0 {
				if c == nil || err != nil {
					t.Errorf("got %v, %v", c, err)
				}
				return
			}
			if c != nil || err == nil {
				t.Fatalf("got %v, %v, want an error", c, err)
			}
			if strings.Contains(err.Error(), "planted") {
				t.Errorf("the error quotes the value: %v", err)
			}
			if n := len(strings.Split(err.Error(), "\n")); n != len(tc.want) {
				t.Errorf("%d mistakes reported, want %d: %v", n, len(tc.want), err)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}

func start(t testing.TB, config emulator.Config) (*emulator.Emulator, *atlas.Client) {
	t.Helper()
	em, err := emulator.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	c, err := atlas.New(atlas.Config{BaseURL: em.URL(), RootCAs: em.CertPool()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdleConnections)
	return em, c
}

// TestSpans checks that a request has a span, with its status and what went wrong.
func TestSpans(t *testing.T) {
	em, _ := start(t, emulator.Config{})
	spans := tracetest.NewSpanRecorder()
	c, err := atlas.New(atlas.Config{BaseURL: em.URL(), RootCAs: em.CertPool(), Tracer: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdleConnections)
	if err := c.DeleteEphemeralToken(t.Context(), atlas.JWT(em.Org(0).MintJWT(emulator.JWT{Forged: true}))); err == nil {
		t.Fatal("no error")
	}
	span := spans.Ended()[0]
	got := map[string]string{"name": span.Name()}
	for _, a := range span.Attributes() {
		got[string(a.Key)] = a.Value.String()
	}
	port := strings.TrimSuffix(strings.TrimPrefix(em.URL(), "https://127.0.0.1:"), "/v1")
	if want := map[string]string{
		"name": "DELETE /ephemeral-token", "http.request.method": "DELETE", "server.address": "127.0.0.1", "server.port": port,
		"url.full": em.URL() + "/ephemeral-token", "http.response.status_code": "401", "error.type": "401",
	}; !maps.Equal(got, want) || em.LastRequest().Header.Get("Traceparent") == "" {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestOperations runs both against a working Atlas, over both versions of HTTP.
func TestOperations(t *testing.T) {
	for _, config := range []emulator.Config{{}, {HTTP1Only: true}} {
		em, c := start(t, config)
		org := em.Org(0)
		jwt := atlas.JWT(org.JWT())

		first, err := c.CreateEphemeralToken(t.Context(), jwt)
		if err != nil || string(first) != org.EphemeralToken() {
			t.Fatalf("create: got %q, %v, want %q", string(first), err, org.EphemeralToken())
		}
		if again, err := c.CreateEphemeralToken(t.Context(), jwt); err != nil || again != first {
			t.Errorf("create again: got %q, %v, want %q", string(again), err, string(first))
		}
		if other, err := c.CreateEphemeralToken(t.Context(), atlas.JWT(em.Org(1).JWT())); err != nil || other == first {
			t.Errorf("another org: got %q, %v, want another token", string(other), err)
		}
		if err := c.DeleteEphemeralToken(t.Context(), jwt); err != nil || org.EphemeralToken() != "" {
			t.Errorf("delete: %v, and the org has %q", err, org.EphemeralToken())
		}
		if next, err := c.CreateEphemeralToken(t.Context(), jwt); err != nil || next == first {
			t.Errorf("create after the delete: got %q, %v, want a new token", string(next), err)
		}

		_, err = c.CreateEphemeralToken(t.Context(), "not.a.jwt")
		if e, ok := errors.AsType[*atlas.Error](err); !ok || e.Kind != atlas.KindStatus || e.StatusCode != http.StatusUnauthorized {
			t.Errorf("a JWT that Atlas did not make: %v", err)
		}
	}
}

// TestSetTLS checks that no call fails while the authorities are replaced under load, and that none
// succeeds without the authority of Atlas.
func TestSetTLS(t *testing.T) {
	em, client := start(t, emulator.Config{})
	jwt := atlas.JWT(em.Org(0).JWT())

	stop := make(chan struct{})
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := client.CreateEphemeralToken(t.Context(), jwt); err != nil {
					t.Errorf("while the authorities are replaced: %v", err)
					return
				}
			}
		})
	}
	for range 50 {
		before := em.Calls(emulator.Create)
		client.SetTLS(em.CertPool(), nil)
		for em.Calls(emulator.Create) < before+8 && !t.Failed() {
			if _, err := client.CreateEphemeralToken(t.Context(), jwt); err != nil {
				t.Errorf("right after a replacement: %v", err)
			}
		}
	}
	close(stop)
	callers.Wait()

	client.SetTLS(x509.NewCertPool(), nil)
	_, err := client.CreateEphemeralToken(t.Context(), jwt)
	var e *atlas.Error
	if !errors.As(err, &e) || e.Kind != atlas.KindTLS {
		t.Errorf("without Atlas's authority: %v, want a TLS error", err)
	}
	client.SetTLS(em.CertPool(), nil)
	if _, err := client.CreateEphemeralToken(t.Context(), jwt); err != nil {
		t.Errorf("with it again: %v", err)
	}
}

func TestLogInAndRefresh(t *testing.T) {
	em, client := start(t, emulator.Config{RefreshWindow: time.Hour})
	org := em.Org(0)

	jwt, err := client.LogIn(t.Context(), atlas.UserAuthToken(org.UserAuthToken()))
	if err != nil {
		t.Fatal(err)
	}
	claims := jwt.UnverifiedClaims()
	if claims.OrgID != org.ID || time.Until(claims.Expiry) <= 0 {
		t.Errorf("claims %+v", claims)
	}
	if refreshed, err := client.RefreshJWT(t.Context(), jwt); err != nil || refreshed == jwt {
		t.Errorf("refresh: the same JWT %v, error %v", refreshed == jwt, err)
	}
	if _, err := client.CreateEphemeralToken(t.Context(), jwt); err != nil {
		t.Errorf("create: %v", err)
	}

	old := atlas.JWT(org.MintJWT(emulator.JWT{Age: 2 * time.Hour}))
	refused := func(what string, err error, kind atlas.Kind, status int) {
		t.Helper()
		e, ok := errors.AsType[*atlas.Error](err)
		if !ok || e.Kind != kind || e.StatusCode != status {
			t.Fatalf("%s: got %v, want %v with status %d", what, err, kind, status)
		}
		if strings.Contains(err.Error(), "planted") || strings.Contains(err.Error(), string(old)) {
			t.Errorf("%s: the error has a secret in it", what)
		}
	}
	_, err = client.LogIn(t.Context(), "planted")
	refused("a wrong secret", err, atlas.KindStatus, 400)
	_, err = client.RefreshJWT(t.Context(), old)
	refused("past the window", err, atlas.KindStatus, 400)
	for _, body := range []string{`{"token": "planted"}`, `{"planted": 1}`} {
		remove := em.Inject(emulator.Fault{On: emulator.Login, Status: 200, Body: body})
		_, err = client.LogIn(t.Context(), "x")
		refused("an answer without a JWT", err, atlas.KindInvalidResponse, 200)
		remove()
	}
}

// TestIdentityHeals checks that a call logs in and succeeds after Atlas has revoked all JWTs.
func TestIdentityHeals(t *testing.T) {
	em, client := start(t, emulator.Config{})
	identity := atlas.NewIdentity(atlas.IdentityConfig{
		Client: client,
		Secret: func() atlas.UserAuthToken { return atlas.UserAuthToken(em.Org(0).UserAuthToken()) },
	})
	t.Cleanup(identity.Close)
	for range 2 {
		cred, err := identity.Credential(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := atlas.WithReLogin(t.Context(), cred, client.CreateEphemeralToken); err != nil {
			t.Fatal(err)
		}
		em.Org(0).RevokeJWTs()
	}
	if n := em.Calls(emulator.Login); n != 2 {
		t.Errorf("%d logins, want 2", n)
	}
}

// TestProbe checks that a probe has no credential, changes nothing, and measures the difference of
// the clocks.
func TestProbe(t *testing.T) {
	em, client := start(t, emulator.Config{Now: func() time.Time { return time.Now().Add(time.Hour) }})
	got, err := client.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.StatusCode != http.StatusMethodNotAllowed || got.Protocol != "HTTP/2.0" || got.Certificate == nil || !got.HasClock {
		t.Errorf("%+v", got)
	}
	if got.Clock > time.Hour || got.Clock < time.Hour-time.Second-10*time.Second {
		t.Errorf("the clock is %v ahead, want an hour", got.Clock)
	}
	if r := em.LastRequest(); em.Calls(emulator.Any) != 1 || em.Calls(emulator.Other) != 1 || r.Header.Get("Authorization") != "" {
		t.Errorf("Atlas got %+v", r)
	}

	em.Inject(emulator.Fault{Status: 302, Header: http.Header{"Date": {"yesterday"}, "Location": {"https://elsewhere.example/"}}})
	if got, err := client.Probe(t.Context()); err != nil || got.StatusCode != http.StatusFound || got.HasClock {
		t.Errorf("a redirect: %+v, %v", got, err)
	}

	client.SetTLS(nil, nil)
	_, err = client.Probe(t.Context())
	if e, ok := errors.AsType[*atlas.Error](err); !ok || e.Op != atlas.OpProbe || e.Kind != atlas.KindTLS || e.Sent {
		t.Errorf("not trusted: %v", err)
	}
}
