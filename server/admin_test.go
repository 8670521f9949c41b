package server_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// getAs reads a page of the admin listener with this Accept header.
func getAs(t *testing.T, s *testutil.Service, path, accept string) (resp *http.Response, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.AdminAddr().String()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", accept)
	resp, err = http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	read, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(read)
}

// TestReadyzJSON checks the list of checks in JSON, and that text has the same status and reasons.
func TestReadyzJSON(t *testing.T) {
	t.Parallel()
	s := testutil.StartIdentity(t, "")
	before := time.Now().Add(-2 * time.Second) // JSON has whole seconds
	type report struct {
		State  string
		Checks []struct {
			Name  string
			OK    bool
			Since time.Time
			Why   string
		}
	}
	get := func(want int) (r report) {
		t.Helper()
		testutil.Eventually(t, func() bool { code, _ := s.Get(t, "/readyz"); return code == want }, "the status does not change")
		resp, body := getAs(t, s.Service, "/readyz", "text/html, application/json;q=0.9")
		if err := json.Unmarshal([]byte(body), &r); err != nil || resp.StatusCode != want || resp.Header.Get("Content-Type") != "application/json" {
			t.Fatalf("%v, %d %v: %s", err, resp.StatusCode, resp.Header, body)
		}
		return r
	}
	good := get(http.StatusOK)
	if good.State != "ready" || len(good.Checks) != 3 || good.Checks[0].Name != "Atlas" || good.Checks[1].Name != "profile acme" ||
		good.Checks[2].Name != "files" || !good.Checks[0].OK || !good.Checks[1].OK || !good.Checks[2].OK || good.Checks[1].Why != "" {
		t.Errorf("ready: %+v", good)
	}
	s.Atlas.Inject(emulator.Fault{On: emulator.Login, Status: http.StatusBadRequest})
	for _, c := range s.Callers(t) {
		testutil.WantServiceRejected.CheckRetry(t, c.Call(testutil.Context(t), testutil.Create), time.Second, time.Minute)
	}
	bad := get(http.StatusServiceUnavailable)
	const why = "profile acme: Atlas refuses the service's own credential: atlas: login: error status (HTTP 400): Bad Request"
	if bad.State != "refused by Atlas" || !bad.Checks[0].OK || bad.Checks[1].OK || bad.Checks[1].Why != why ||
		bad.Checks[1].Since.Before(before) || bad.Checks[1].Since.After(time.Now()) {
		t.Errorf("refused: %+v", bad)
	}
	for _, accept := range []string{"", "*/*", "text/plain"} {
		if resp, body := getAs(t, s.Service, "/readyz", accept); resp.Header.Get("Content-Type") != "text/plain; charset=utf-8" || body != "refused by Atlas\n"+why+"\n" {
			t.Errorf("with %q: %v %q", accept, resp.Header, body)
		}
	}
}

// TestProfiling checks that profiles are off by default, never show the command line, and are not
// served to callers.
func TestProfiling(t *testing.T) {
	t.Parallel()
	for _, on := range []bool{false, true} {
		s := testutil.Start(t, testutil.Plaintext, func(c *server.Config, _ *atlas.Config) { c.Debug = on })
		want := map[bool]int{false: http.StatusNotFound, true: http.StatusOK}[on]
		for path, want := range map[string]int{
			"/debug/pprof/": want, "/debug/pprof/heap": want, "/debug/pprof/goroutine": want, "/debug/pprof/trace?seconds=0.01": want,
			"/debug/pprof/cmdline": http.StatusNotFound, "/debug/pprof/symbol": http.StatusNotFound,
		} {
			if code, _ := s.Get(t, path); code != want {
				t.Errorf("profiling %v: %s: %d, want %d", on, path, code, want)
			}
		}
		if code, body := s.Get(t, "/"); code != http.StatusOK || strings.Contains(body, "/debug/pprof/") != on || !strings.Contains(body, "/metrics\n") {
			t.Errorf("profiling %v: /: %d %q", on, code, body)
		}
		testutil.WantNoRoute.Check(t, s.RESTCaller(t).Do(testutil.Context(t), http.MethodGet, "/debug/pprof/", nil))
	}
}

// TestAdminHeaders checks that the admin listener refuses oversized headers without reading all of
// them.
func TestAdminHeaders(t *testing.T) {
	t.Parallel()
	s := testutil.Start(t, testutil.Plaintext)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.AdminAddr().String()+"/healthz", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Large", strings.Repeat("x", 32<<10))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status %d, want 431", resp.StatusCode)
	}
}

// TestStatusPage checks that a browser gets the status page, with the server's checks and metrics,
// and that the page loads nothing else.
func TestStatusPage(t *testing.T) {
	t.Parallel()
	s := testutil.StartIdentity(t, "")
	testutil.WantCreated.Check(t, s.GRPCCaller(t).Call(testutil.Context(t), testutil.Create)) // logs in
	resp, body := getAs(t, s.Service, "/", "text/html,application/xhtml+xml,*/*;q=0.8")
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/html; charset=utf-8" ||
		!strings.HasPrefix(resp.Header.Get("Content-Security-Policy"), "default-src 'none';") {
		t.Errorf("status %d, headers %v", resp.StatusCode, resp.Header)
	}
	for _, text := range []string{"profile acme", "logged in", "next renewal in", "Connections, admin"} {
		if !strings.Contains(body, text) {
			t.Errorf("the page lacks %q", text)
		}
	}
}

// TestOpenMetrics checks that each family occurs once under its OpenMetrics name, which has no
// _total.
func TestOpenMetrics(t *testing.T) {
	t.Parallel()
	s := testutil.Start(t, testutil.Plaintext)
	_, body := getAs(t, s, "/metrics", "application/openmetrics-text;version=1.0.0")
	if !strings.HasSuffix(body, "# EOF\n") {
		t.Fatal("the response is not OpenMetrics")
	}
	seen := map[string]bool{}
	for line := range strings.SplitSeq(body, "\n") {
		if family, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, _, _ := strings.Cut(family, " ")
			if seen[name] {
				t.Errorf("%s occurs twice", name)
			}
			seen[name] = true
		}
	}
	if !seen["tokend_ready"] || !seen["go_goroutines"] {
		t.Error("the metrics are incomplete")
	}
}
