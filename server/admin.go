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

// newAdminHandler serves what operators and probes need and callers do not: it belongs on an address of its own.
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
	// Alive: the process answers. Whether Atlas does is no reason to restart it.
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writePlain(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", ready.serve)
	mux.Handle("GET /metrics", metricsHandler(metrics))
	if debug {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index) // and all profiles but the two below, which take a while
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// serve answers /readyz: a line with the state and one for each problem, or all checks as JSON for those who ask for it.
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

// accepts reports whether a client asks for a media type by name. A client that takes anything gets text.
func accepts(h http.Header, wanted string) bool {
	for accepted := range strings.SplitSeq(strings.Join(h.Values("Accept"), ","), ",") {
		if mediaType, _, err := mime.ParseMediaType(accepted); err == nil && mediaType == wanted {
			return true
		}
	}
	return false
}

// readyJSON is the answer of /readyz on the wire.
type readyJSON struct {
	State  string      `json:"state"`
	Checks []checkJSON `json:"checks"`
}

// checkJSON is a check on the wire.
type checkJSON struct {
	Name  string    `json:"name"`
	OK    bool      `json:"ok"`
	Since time.Time `json:"since"`
	Why   string    `json:"why,omitempty"`
}

func writeJSON(w http.ResponseWriter, status int, state string, found []status.Check) {
	checks := make([]checkJSON, 0, len(found))
	for _, c := range found {
		told := checkJSON{Name: c.Name, OK: c.Err == nil, Since: c.Since.UTC().Truncate(time.Second)}
		if c.Err != nil {
			told.Why = c.Err.Error()
		}
		checks = append(checks, told)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(readyJSON{state, checks}) // the client has gone if this fails
}

func writePlain(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n") // the client has gone if this fails
}
