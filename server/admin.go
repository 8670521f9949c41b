package server

import (
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ForstaLabs/ephemeral-token-service/internal/status"
)

// newAdminHandler serves the status page, probes, metrics and profiles, on an address that callers
// should not reach.
func newAdminHandler(ready *readiness, page http.Handler, metrics *prometheus.Registry, debug bool) http.Handler {
	mux := http.NewServeMux()
	pages := "/ in a browser: the status page\n/healthz\n/readyz, also as application/json\n"
	if debug {
		pages += "/debug/pprof/\n"
	}
	pages += "/metrics"
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Vary", "Accept")
		if accepts(req.Header, "text/html") {
			page.ServeHTTP(w, req)
			return
		}
		writePlain(w, http.StatusOK, pages)
	})
	// Liveness: the process answers. An Atlas outage is no reason to restart it.
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writePlain(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", ready.serve)
	mux.Handle("GET /metrics", metricsHandler(metrics))
	if debug {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index) // all profiles except the two below
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// serve answers /readyz: the state and one line per problem, or all checks as JSON if the request
// accepts that by name.
func (r *readiness) serve(w http.ResponseWriter, req *http.Request) {
	status, state := http.StatusOK, r.get()
	if state != stateReady {
		status = http.StatusServiceUnavailable
	}
	found := r.checks.get()
	w.Header().Set("Vary", "Accept")
	if accepts(req.Header, "application/json") {
		writeJSON(w, status, state, found)
		return
	}
	text := []string{state}
	for _, c := range found {
		if c.Err != nil {
			text = append(text, c.Err.Error())
		}
	}
	writePlain(w, status, strings.Join(text, "\n"))
}

// accepts reports whether the Accept header names a media type. Wildcards do not count.
func accepts(h http.Header, wanted string) bool {
	for accepted := range strings.SplitSeq(strings.Join(h.Values("Accept"), ","), ",") {
		if mediaType, _, err := mime.ParseMediaType(accepted); err == nil && mediaType == wanted {
			return true
		}
	}
	return false
}

// readyJSON is the JSON body of /readyz.
type readyJSON struct {
	State  string      `json:"state"`
	Checks []checkJSON `json:"checks"`
}

// checkJSON is one check in a readyJSON.
type checkJSON struct {
	Name  string    `json:"name"`
	OK    bool      `json:"ok"`
	Since time.Time `json:"since"`
	Why   string    `json:"why,omitempty"`
}

func writeJSON(w http.ResponseWriter, status int, state string, found []status.Check) {
	checks := make([]checkJSON, 0, len(found))
	for _, c := range found {
		out := checkJSON{Name: c.Name, OK: c.Err == nil, Since: c.Since.UTC().Truncate(time.Second)}
		if c.Err != nil {
			out.Why = c.Err.Error()
		}
		checks = append(checks, out)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(readyJSON{state, checks}) // fails only if the client has gone
}

func writePlain(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n") // fails only if the client has gone
}
