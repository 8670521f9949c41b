package browser

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// answer is a page's view of one call.
type answer struct {
	Status  int
	Reason  string // of an error
	Headers map[string]string
}

// call makes the page in the tab call the service, with every header that REST callers may send.
func (tb *tab) call(s service, verb, jwt string) (answer, error) {
	script := fmt.Sprintf(`(async () => {
		const headers = {"x-request-id": "from-a-page", "cache-control": "no-cache", "grpc-timeout": "9S", "content-type": "application/json",
			"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=b"};
		if (%[3]q) headers.authorization = "JWT " + %[3]q;
		const r = await fetch("http://%[1]s/v1/ephemeral-token", {method: %[2]q, headers});
		const text = await r.text();
		return {Status: r.status, Headers: Object.fromEntries(r.headers), Reason: r.ok ? "" : JSON.parse(text).details[0].reason};
	})()`, s.http, verb, jwt)
	return within(tb, chromedp.Evaluate[answer](script, chromedp.EvalAwaitPromise))
}

// TestCORS checks that a page of an admitted origin can call and read every response, and no other
// page can.
func TestCORS(t *testing.T) {
	tb := openTab(t)
	pages := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, `<!doctype html><title>page</title><link rel=icon href="data:,">`)
	}))
	t.Cleanup(pages.Close)
	u, err := url.Parse(pages.URL)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := "http://localhost:" + u.Port() // another origin than 127.0.0.1
	open, closed := startDev(t, "--cors-origin="+pages.URL), startDev(t)

	tb.do(t, chromedp.Navigate(pages.URL))
	for _, tc := range []struct {
		name, verb, jwt string
		status          int
		reason          string
		headers         []string // that the page can see
	}{
		{"create", http.MethodPost, open.jwt, 201, "", []string{"cache-status", "x-request-id"}},
		{"delete", http.MethodDelete, open.jwt, 204, "", []string{"x-request-id"}},
		{"error", http.MethodPost, "", 401, "CREDENTIAL_MISSING", []string{"www-authenticate", "x-request-id"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := tb.call(open, tc.verb, tc.jwt)
			if err != nil || got.Status != tc.status || got.Reason != tc.reason {
				t.Fatalf("got %+v, %v", got, err)
			}
			for _, name := range tc.headers {
				if got.Headers[name] == "" {
					t.Errorf("the page does not see %s: %v", name, got.Headers)
				}
			}
		})
	}
	blocked := func(t *testing.T, s service, jwt string) {
		t.Helper()
		got, err := tb.call(s, http.MethodPost, jwt)
		if err == nil || !strings.Contains(err.Error(), "Failed to fetch") {
			t.Errorf("got %+v, %v", got, err)
		}
	}
	t.Run("off", func(t *testing.T) { blocked(t, closed, closed.jwt) })
	tb.do(t, chromedp.Navigate(elsewhere))
	t.Run("another origin", func(t *testing.T) { blocked(t, open, open.jwt) })
}
