package server_test

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// page is a response of the REST listener, not decompressed.
type page struct {
	*http.Response
	body string
}

// fetch makes a request without a credential; headers is in pairs.
func fetch(t *testing.T, s *testutil.Service, verb, path string, headers ...string) page {
	t.Helper()
	req, err := http.NewRequestWithContext(testutil.Context(t), verb, "http://"+s.HTTPAddr().String()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := (&http.Transport{DisableKeepAlives: true, DisableCompression: true, DialContext: s.DialContext}).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return page{resp, string(body)}
}

func withDocs(c *server.Config, _ *atlas.Config) { c.Docs = true }

// TestDocs checks the API page and its files, and that there are no others.
func TestDocs(t *testing.T) {
	t.Parallel()
	s := testutil.Start(t, testutil.Plaintext, withDocs)
	for path, contentType := range map[string]string{
		"/docs": "text/html; charset=utf-8", "/docs/init.js": "text/javascript; charset=utf-8", "/docs/swagger-ui.css": "text/css; charset=utf-8",
		"/docs/swagger-ui-bundle.js": "text/javascript; charset=utf-8", "/docs/favicon-32x32.png": "image/png", "/openapi.json": "application/json",
	} {
		t.Run(path, func(t *testing.T) {
			got := fetch(t, s, http.MethodGet, path)
			want := map[string]string{
				"Content-Type": contentType, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
				"Content-Encoding": "", "Content-Length": fmt.Sprint(len(got.body)),
			}
			for name, value := range want {
				if got.Header.Get(name) != value {
					t.Errorf("%s is %q, want %q", name, got.Header.Get(name), value)
				}
			}
			policy := got.Header.Get("Content-Security-Policy")
			for _, want := range []string{"default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"} {
				if !strings.Contains(policy+";", want+";") {
					t.Errorf("Content-Security-Policy has no %s: %s", want, policy)
				}
			}
			if got.StatusCode != http.StatusOK || got.body == "" || strings.Contains(policy, "unsafe") {
				t.Errorf("%d, %d bytes, %s", got.StatusCode, len(got.body), policy)
			}
			head := fetch(t, s, http.MethodHead, path)
			if head.StatusCode != http.StatusOK || head.body != "" || head.Header.Get("ETag") != got.Header.Get("ETag") {
				t.Errorf("HEAD: %d %v", head.StatusCode, head.Header)
			}
			if again := fetch(t, s, http.MethodGet, path, "If-None-Match", got.Header.Get("ETag")); again.StatusCode != http.StatusNotModified || again.body != "" {
				t.Errorf("with its ETag: %d, %d bytes", again.StatusCode, len(again.body))
			}
			if got := fetch(t, s, http.MethodPost, path); got.StatusCode != http.StatusMethodNotAllowed || got.Header.Get("Allow") != "GET, HEAD" {
				t.Errorf("POST: %d, Allow: %s", got.StatusCode, got.Header.Get("Allow"))
			}
		})
	}
	document, err := os.ReadFile(testutil.Path("gen/openapi/ephemeral_token.openapi.json"))
	if err != nil {
		t.Fatal(err)
	}
	if got := fetch(t, s, http.MethodGet, "/openapi.json"); got.body != string(document) {
		t.Error("/openapi.json is not the document")
	}
	for path, location := range map[string]string{"/": "docs", "/docs/": "../docs"} {
		if got := fetch(t, s, http.MethodGet, path); got.StatusCode != http.StatusPermanentRedirect || got.Header.Get("Location") != location {
			t.Errorf("%s: %d to %s", path, got.StatusCode, got.Header.Get("Location"))
		}
	}
	if got := fetch(t, s, http.MethodGet, "/docs/index.html"); got.StatusCode != http.StatusNotFound {
		t.Errorf("/docs/index.html: %d", got.StatusCode)
	}
	if n := s.Atlas.Calls(emulator.Any); n != 0 || strings.Contains(s.Log.String(), `"code":"OK"`) {
		t.Errorf("a page counts as a call: %d calls to Atlas\n%s", n, s.Log)
	}
}

// TestDocsOff checks that the page is off by default.
func TestDocsOff(t *testing.T) {
	t.Parallel()
	s := testutil.Start(t, testutil.Plaintext)
	for _, path := range []string{"/", "/docs", "/docs/", "/docs/init.js", "/openapi.json"} {
		if got := fetch(t, s, http.MethodGet, path); got.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %d", path, got.StatusCode)
		}
	}
}

// TestDocsCompressed checks that clients that accept gzip get it, that others get the same content,
// and that caches can tell the two apart.
func TestDocsCompressed(t *testing.T) {
	t.Parallel()
	s := testutil.Start(t, testutil.Plaintext, withDocs)
	for _, path := range []string{"/docs/swagger-ui-bundle.js", "/openapi.json"} {
		plain := fetch(t, s, http.MethodGet, path)
		for accepted, compressed := range map[string]bool{
			"gzip": true, "br, gzip;q=0.5": true, "deflate": false, "gzip;q=0": false, "gzip;q=0.0, br": false, "identity": false, "": false, "*": false,
		} {
			got := fetch(t, s, http.MethodGet, path, "Accept-Encoding", accepted)
			body, etag := got.body, got.Header.Get("ETag")
			if compressed {
				z, err := gzip.NewReader(strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				content, err := io.ReadAll(z)
				if err != nil {
					t.Fatal(err)
				}
				body = string(content)
			}
			if (got.Header.Get("Content-Encoding") == "gzip") != compressed || got.Header.Get("Vary") != "Accept-Encoding" {
				t.Errorf("%s: Accept-Encoding %q: %v", path, accepted, got.Header)
			}
			if body != plain.body || (etag == plain.Header.Get("ETag")) == compressed {
				t.Errorf("%s: Accept-Encoding %q: %d bytes, want the same content, and an ETag of its own: %s", path, accepted, len(body), etag)
			}
		}
	}
}

const pageOrigin = "https://app.example.com"

func withOrigin(c *server.Config, _ *atlas.Config) {
	c.CORSOrigins = []string{pageOrigin, "http://localhost:3000"}
}

// corsHeaders returns the CORS headers of a response.
func corsHeaders(h http.Header) map[string]string {
	found := map[string]string{}
	for name, values := range h {
		if strings.HasPrefix(name, "Access-Control-") {
			found[strings.TrimPrefix(name, "Access-Control-")] = strings.Join(values, "|")
		}
	}
	return found
}

// TestPreflight checks which origins, methods and headers are allowed, and that a preflight is not
// a call: it needs no credential, takes no place and does not reach Atlas.
func TestPreflight(t *testing.T) {
	t.Parallel()
	testutil.RunVirtual(t, testPreflight)
}

func testPreflight(t *testing.T, v *testutil.Virtual) {
	s := v.Start(t, testutil.Plaintext, withOrigin, func(c *server.Config, _ *atlas.Config) { c.MaxCalls, c.CallerRate = 2, 1 })
	gate := s.Atlas.Hold(emulator.Create)
	call := testutil.Async(testutil.Context(t), s.RESTCaller(t), testutil.Create, testutil.Credential(s.Atlas)...) // a caller has half of the places
	if err := gate.Wait(testutil.Context(t), 1); err != nil {
		t.Fatal(err)
	}
	before := countedCalls(t, s)
	for _, tc := range []struct {
		name, origin, method, headers string
		allowed                       bool
	}{
		{"all that REST takes", pageOrigin, "POST", "authorization,cache-control,content-type,grpc-timeout,traceparent,tracestate,x-request-id", true},
		{"delete", pageOrigin, "DELETE", "authorization", true},
		{"no headers", pageOrigin, "DELETE", "", true},
		{"the second origin", "http://localhost:3000", "POST", "authorization", true},
		{"another origin", "https://app.example.com.evil.example", "POST", "authorization", false},
		{"another port", "https://app.example.com:8443", "POST", "authorization", false},
		{"another scheme", "http://app.example.com", "POST", "authorization", false},
		{"no origin", "", "POST", "authorization", false},
		{"null", "null", "POST", "authorization", false},
		{"another method", pageOrigin, "PUT", "authorization", false},
		{"another header", pageOrigin, "POST", "authorization,x-api-key", false},
		{"what is never a credential", pageOrigin, "POST", "grpc-metadata-authorization", false},
	} {
		headers := []string{"Access-Control-Request-Method", tc.method}
		want := map[string]string{}
		if tc.allowed {
			want = map[string]string{"Allow-Origin": tc.origin, "Allow-Methods": tc.method, "Max-Age": "7200"}
		}
		if tc.origin != "" {
			headers = append(headers, "Origin", tc.origin)
		}
		if tc.headers != "" {
			headers = append(headers, "Access-Control-Request-Headers", tc.headers)
			if tc.allowed {
				want["Allow-Headers"] = tc.headers
			}
		}
		for range 3 {
			got := fetch(t, s, http.MethodOptions, "/v1/ephemeral-token", headers...)
			if diff := cmp.Diff(want, corsHeaders(got.Header)); diff != "" || got.StatusCode != http.StatusNoContent || got.body != "" {
				t.Fatalf("%s: %d %q (-want +got):\n%s", tc.name, got.StatusCode, got.body, diff)
			}
			if vary := got.Header.Get("Vary"); vary != "Origin, Access-Control-Request-Method, Access-Control-Request-Headers" {
				t.Fatalf("%s: Vary is %q", tc.name, vary)
			}
		}
	}
	if n := s.Atlas.Calls(emulator.Any); n != 1 {
		t.Errorf("%d calls to Atlas, want 1", n)
	}
	if log := s.Log.String(); strings.Contains(log, "call") {
		t.Errorf("preflights are logged as calls:\n%s", log)
	}
	if diff := cmp.Diff(before, countedCalls(t, s)); diff != "" {
		t.Errorf("preflights are counted as calls (-before +after):\n%s", diff)
	}
	gate.Release()
	testutil.WantCreated.Check(t, <-call)
}

// countedCalls returns the counters of calls and of refused requests.
func countedCalls(t *testing.T, s *testutil.Service) (lines []string) {
	t.Helper()
	_, metrics := s.Get(t, "/metrics")
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "grpc_server_started_total{") || strings.HasPrefix(line, "tokend_calls_failed_total{") || strings.HasPrefix(line, "tokend_calls_refused_total{") {
			lines = append(lines, line)
		}
	}
	if len(lines) < 10 {
		t.Fatalf("/metrics has %d counters of calls", len(lines))
	}
	return lines
}

// panickyTokens panics on every create.
type panickyTokens struct{ server.Tokens }

func (*panickyTokens) Create(context.Context, atlas.Credential, bool) (tokencache.Result, error) {
	panic("planted")
}

// TestCORS checks that pages of allowed origins, and no others, can read every response, errors
// included, and that caches keep the origins apart.
func TestCORS(t *testing.T) {
	t.Parallel()
	broken := testutil.Start(t, testutil.Plaintext, withOrigin, func(c *server.Config, _ *atlas.Config) {
		c.Tokens = func(tokencache.Atlas) server.Tokens { return &panickyTokens{} }
	})
	s := testutil.Start(t, testutil.Plaintext, withOrigin, withDocs)
	jwt := testutil.Credential(s.Atlas)
	overloaded := func(t *testing.T) {
		t.Helper()
		t.Cleanup(s.Atlas.Inject(emulator.Fault{Status: 429}))
	}
	for _, tc := range []struct {
		name, verb, path string
		service          *testutil.Service
		headers          []string
		status           int
		prepare          func(*testing.T)
	}{
		{"created", "POST", "/v1/ephemeral-token", s, jwt, 201, nil},
		{"deleted", "DELETE", "/v1/ephemeral-token", s, jwt, 204, nil},
		{"no credential", "POST", "/v1/ephemeral-token", s, nil, 401, nil},
		{"no such route", "POST", "/v1/nothing", s, nil, 404, nil},
		{"overloaded", "POST", "/v1/ephemeral-token", s, jwt, 429, overloaded},
		{"panic", "POST", "/v1/ephemeral-token", broken, testutil.Credential(broken.Atlas), 500, nil},
		{"document", "GET", "/openapi.json", s, nil, 200, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.prepare != nil {
				tc.prepare(t)
			}
			for _, origin := range []string{pageOrigin, "https://elsewhere.example", "null", ""} {
				headers := tc.headers
				if origin != "" {
					headers = append([]string{"Origin", origin}, headers...)
				}
				got := fetch(t, tc.service, tc.verb, tc.path, headers...)
				want := map[string]string{}
				if origin == pageOrigin {
					want = map[string]string{"Allow-Origin": pageOrigin, "Expose-Headers": "X-Request-Id, Cache-Status, Age, Retry-After, Www-Authenticate, Allow"}
				}
				if diff := cmp.Diff(want, corsHeaders(got.Header)); diff != "" || got.StatusCode != tc.status {
					t.Errorf("of %q: %d %s (-want +got):\n%s", origin, got.StatusCode, got.body, diff)
				}
				if vary := got.Header.Values("Vary"); !slices.Contains(vary, "Origin") { // and a page's encoding
					t.Errorf("of %q: Vary is %q", origin, vary)
				}
			}
		})
	}
	t.Run("off", func(t *testing.T) {
		off := testutil.Start(t, testutil.Plaintext)
		got := fetch(t, off, http.MethodPost, "/v1/ephemeral-token", append(testutil.Credential(off.Atlas), "Origin", pageOrigin)...)
		if len(corsHeaders(got.Header)) > 0 || got.StatusCode != http.StatusCreated {
			t.Errorf("%d %v", got.StatusCode, got.Header)
		}
		got = fetch(t, off, http.MethodOptions, "/v1/ephemeral-token", "Origin", pageOrigin, "Access-Control-Request-Method", "POST")
		if len(corsHeaders(got.Header)) > 0 || got.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("preflight: %d %v", got.StatusCode, got.Header)
		}
	})
}
