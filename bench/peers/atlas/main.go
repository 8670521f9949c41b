// Command atlas stands in for Atlas in benchmarks. It answers every create with the same token, as
// cheaply as net/http permits, and checks nothing.
//
// GET /calls returns the number of creates, GET /most the most concurrent ones since the last GET
// /most, and POST /latency?is=20ms sets their latency.
package main

import (
	"crypto/tls"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "where to listen")
	cert := flag.String("tls-cert-file", "", "certificate, PEM")
	key := flag.String("tls-key-file", "", "its key, PEM")
	flag.Parse()
	server := &http.Server{
		Addr: *addr, Handler: &standIn{}, ReadHeaderTimeout: 10 * time.Second,
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12},
		HTTP2:     &http.HTTP2Config{MaxConcurrentStreams: 1000},
		ErrorLog:  slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // killed servers break connections
	}
	if err := server.ListenAndServeTLS(*cert, *key); err != nil {
		fmt.Fprintln(os.Stderr, "atlas:", err)
		os.Exit(1)
	}
}

type standIn struct {
	calls, latency, inProgress, most atomic.Int64
}

// The response.
var (
	answer      = []byte(`{"token":"0123456789abcdef0123456789abcdef01234567"}`)
	contentType = []string{"application/json"}
)

func (s *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/v1/ephemeral-token" && r.Method == http.MethodPost:
		s.calls.Add(1)
		s.begin()
		defer s.inProgress.Add(-1)
		if d := time.Duration(s.latency.Load()); d > 0 {
			<-time.After(d)
		}
		w.Header()["Content-Type"] = contentType
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write(answer) // fails if the client has left
	case r.URL.Path == "/calls" && r.Method == http.MethodGet:
		fmt.Fprint(w, s.calls.Load())
	case r.URL.Path == "/most" && r.Method == http.MethodGet:
		fmt.Fprint(w, s.most.Swap(s.inProgress.Load()))
	case r.URL.Path == "/latency" && r.Method == http.MethodPost:
		d, err := time.ParseDuration(r.URL.Query().Get("is"))
		if err != nil {
			http.Error(w, "is must be a duration such as 20ms", http.StatusBadRequest)
			return
		}
		s.latency.Store(int64(d))
	default:
		http.NotFound(w, r)
	}
}

// begin counts a create.
func (s *standIn) begin() {
	n := s.inProgress.Add(1)
	for most := s.most.Load(); n > most && !s.most.CompareAndSwap(most, n); {
		most = s.most.Load()
	}
}
