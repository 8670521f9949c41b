package atlas_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

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

// The two operations against a working Atlas, over both versions of HTTP.
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

func TestKindString(t *testing.T) {
	for kind, want := range map[atlas.Kind]string{
		0: "Kind(0)", atlas.KindUnreachable: "unreachable", atlas.KindInvalidCredential: "invalid credential", 99: "Kind(99)",
	} {
		if got := kind.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func BenchmarkCreateEphemeralToken(b *testing.B) {
	for _, bc := range []struct {
		name   string
		config emulator.Config
	}{{"HTTP2", emulator.Config{}}, {"HTTP1", emulator.Config{HTTP1Only: true}}} {
		b.Run(bc.name, func(b *testing.B) {
			em, c := start(b, bc.config)
			jwt := atlas.JWT(em.Org(0).JWT())
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.CreateEphemeralToken(b.Context(), jwt); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
