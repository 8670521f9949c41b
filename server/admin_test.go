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

// readyJSON asks /readyz for JSON.
func readyJSON(t *testing.T, s *testutil.Service, accept string) (status int, contentType, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.AdminAddr().String()+"/readyz", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", accept)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	read, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("Content-Type"), string(read)
}

// TestReadyzJSON: who asks for JSON gets each check, since when it is so, and why; the status is
// that of the text.
func TestReadyzJSON(t *testing.T) {
	t.Parallel()
	s := testutil.StartIdentity(t, "")
	before := time.Now().Add(-2 * time.Second) // JSON has whole seconds
	type told struct {
		State  string
		Checks []struct {
			Name  string
			OK    bool
			Since time.Time
			Why   string
		}
	}
	ask := func(want int) told {
		t.Helper()
		status, contentType, body := readyJSON(t, s.Service, "text/html, application/json;q=0.9")
		var answer told
		if err := json.Unmarshal([]byte(body), &answer); err != nil || status != want || contentType != "application/json" {
			t.Fatalf("%v, %d %s: %s", err, status, contentType, body)
		}
		return answer
	}
	testutil.Eventually(t, func() bool { code, _ := s.Get(t, "/readyz"); return code == http.StatusOK }, "it is not ready")
	good := ask(http.StatusOK)
	if good.State != "ready" || len(good.Checks) != 3 || good.Checks[0].Name != "Atlas" || good.Checks[1].Name != "profile acme" ||
		good.Checks[2].Name != "files" || !good.Checks[0].OK || !good.Checks[1].OK || !good.Checks[2].OK || good.Checks[1].Why != "" {
		t.Errorf("when all is well: %+v", good)
	}
	s.Atlas.Inject(emulator.Fault{On: emulator.Login, Status: http.StatusBadRequest})
	for _, c := range s.Callers(t) {
		testutil.WantServiceRejected.CheckRetry(t, c.Call(testutil.Context(t), testutil.Create), time.Second, time.Minute)
	}
	testutil.Eventually(t, func() bool { code, _ := s.Get(t, "/readyz"); return code == http.StatusServiceUnavailable }, "it is ready")
	bad := ask(http.StatusServiceUnavailable)
	const why = "profile acme: Atlas refuses the service's own credential: atlas: login: error status (HTTP 400): Bad Request"
	if bad.State != "refused by Atlas" || !bad.Checks[0].OK || bad.Checks[1].OK || bad.Checks[1].Why != why ||
		bad.Checks[1].Since.Before(before) || bad.Checks[1].Since.After(time.Now()) {
		t.Errorf("when Atlas refuses the profile: %+v", bad)
	}
	for _, accept := range []string{"", "*/*", "text/plain"} {
		if _, contentType, body := readyJSON(t, s.Service, accept); contentType != "text/plain; charset=utf-8" || body != "refused by Atlas\n"+why+"\n" {
			t.Errorf("with %q: %s %q", accept, contentType, body)
		}
	}
}

// TestProfiling: there are no profiles unless somebody has asked for them, and never the command
// line, nor anything for callers.
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

// TestStatusPage checks that a browser gets the status page, with the state of the server's own
// checks and metrics, and that it loads nothing else.
func TestStatusPage(t *testing.T) {
	t.Parallel()
	s := testutil.StartIdentity(t, "")
	for _, c := range s.Callers(t) { // they make the service log in
		if got := c.Call(testutil.Context(t), testutil.Create); got.Token == "" {
			t.Fatalf("%+v", got)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.AdminAddr().String()+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/html,application/xhtml+xml,*/*;q=0.8")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/html; charset=utf-8" ||
		!strings.HasPrefix(resp.Header.Get("Content-Security-Policy"), "default-src 'none';") {
		t.Errorf("status %d, headers %v", resp.StatusCode, resp.Header)
	}
	for _, text := range []string{"profile acme", "logged in", "next renewal in", "Connections, admin"} {
		if !strings.Contains(string(body), text) {
			t.Errorf("the page lacks %q", text)
		}
	}
}
