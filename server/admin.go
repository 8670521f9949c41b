package server

import (
	"io"
	"net/http"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// readiness is whether new calls should be sent here. It is false until the listeners serve and again while draining.
type readiness struct{ state atomic.Pointer[string] }

func (r *readiness) set(state string) { r.state.Store(&state) }

const stateReady = "ready"

func (r *readiness) get() string {
	if s := r.state.Load(); s != nil {
		return *s
	}
	return "starting"
}

// newAdminHandler serves what operators and probes need and callers do not: it belongs on an address of its own.
func newAdminHandler(ready *readiness, warnings func() error, metrics *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	// Alive: the process answers. Whether Atlas does is no reason to restart it.
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writePlain(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		status, state := http.StatusOK, ready.get()
		if state != stateReady {
			status = http.StatusServiceUnavailable
		}
		// Told in words only: every replica has the same with Atlas, and without one there is nobody to say so.
		if err := warnings(); err != nil {
			state += "\n" + err.Error()
		}
		writePlain(w, status, state)
	})
	mux.Handle("GET /metrics", metricsHandler(metrics))
	return mux
}

func writePlain(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n") // the client has gone if this fails
}
