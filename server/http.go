package server

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/call"
	"github.com/ForstaLabs/ephemeral-token-service/internal/listen"
	"github.com/ForstaLabs/ephemeral-token-service/internal/lograte"
)

// idleTimeout closes idle connections. It is longer than the 600 s for which load balancers keep
// one, because a request that is sent while the server closes the connection fails.
const idleTimeout = 620 * time.Second

// How long after a call's ceiling its answer may still be read. net/http resets a REST stream whose
// answer is unread; a gRPC connection is closed a little later.
const (
	restAnswerTimeout = 15 * time.Second
	grpcAnswerTimeout = 20 * time.Second
)

// newHTTPServer returns an http.Server with the limits of the REST and the admin listener.
func newHTTPServer(handler http.Handler, ceiling time.Duration, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:        handler,
		ErrorLog:       slog.NewLogLogger(lograte.Kind(log, lograte.NetHTTP).Handler(), slog.LevelWarn),
		MaxHeaderBytes: transportHeaderBytes,
		ConnContext:    listen.NewContext,
		// OPTIONS * gets our own answer, like any unknown route.
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            5 * time.Second,
		ReadTimeout:                  messageTimeout,
		WriteTimeout:                 ceiling + restAnswerTimeout,
		IdleTimeout:                  idleTimeout,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams,
			SendPingTimeout:      keepaliveTime,
			PingTimeout:          keepaliveTimeout,
			WriteByteTimeout:     10 * time.Second,
			// As on the gRPC listener. The default of 1 MiB is for larger bodies.
			MaxReceiveBufferPerStream:     call.MaxMessageBytes,
			MaxReceiveBufferPerConnection: 4 * call.MaxMessageBytes,
		},
	}
}

// restProtocols returns the protocols of the REST listener. The listener does TLS itself, so
// net/http sees plaintext, where HTTP/2 begins with the client's preface (RFC 9113, section 3.3).
// Meshes and proxies without TLS use that too.
func restProtocols() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	return p
}

// restFront adds the connection's TLS state to a request. It ends connections, over HTTP/2 with
// GOAWAY, at ConnectionAge, as grpc-go does, and while the server drains. Closing idle connections
// at once, as http.Server does, would fail requests that are on their way.
func (s *Server) restFront(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn := listen.FromContext(r.Context())
		r.TLS = conn.TLS()
		if s.ready.get() == stateDraining || time.Since(conn.Opened()) > s.cfg.ConnectionAge {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// overloaded reports whether a REST request exceeds its connection's share of the requests that may
// wait for their clients, and whether its refusal must have no body, because the client does not
// read bodies.
func (s *Server) overloaded(ctx context.Context) (refuse, brief bool) {
	conn := listen.FromContext(ctx)
	if conn.Admit() {
		return false, false
	}
	s.refused(requestsLimit)
	return true, conn.Waiting() > 2*listen.Few
}
