package server

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/call"
	"github.com/ForstaLabs/ephemeral-token-service/internal/listen"
	"github.com/ForstaLabs/ephemeral-token-service/internal/lograte"
)

// idleTimeout is when an idle connection is closed. It is longer than the 600 s for which load balancers keep one: a request that
// is sent while the server closes the connection fails.
const idleTimeout = 620 * time.Second

// How long after the ceiling of a call its answer may still be read. net/http resets a REST stream whose answer is not; a
// connection of gRPC is closed a little later.
const (
	restAnswerTimeout = 15 * time.Second
	grpcAnswerTimeout = 20 * time.Second
)

// newHTTPServer has the limits of every HTTP listener. A client that sends slowly is gone after ReadTimeout.
func newHTTPServer(handler http.Handler, ceiling time.Duration, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:        handler,
		ErrorLog:       slog.NewLogLogger(lograte.Kind(log, lograte.NetHTTP).Handler(), slog.LevelWarn),
		MaxHeaderBytes: transportHeaderBytes,
		ConnContext:    listen.NewContext,
		ConnState: func(c net.Conn, state http.ConnState) {
			c.(*listen.Conn).SetBusy(state == http.StateActive)
		},
		// OPTIONS * is a route that does not exist, like any other, and not for net/http to answer.
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
			// As on the gRPC listener, and not a megabyte for a client that keeps bodies back.
			MaxReceiveBufferPerStream:     call.MaxMessageBytes,
			MaxReceiveBufferPerConnection: 4 * call.MaxMessageBytes,
		},
	}
}

// restProtocols are those of the REST listener. The listener does TLS itself, so to net/http all of it is plaintext, and
// HTTP/2 begins with the client's preface (RFC 9113, section 3.3). A client without TLS may do that too, as meshes and
// proxies do.
func restProtocols() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	return p
}

// restFront tells next about the connection of a request. It ends connections at connectionAge, as grpc-go does, so that
// clients find replicas that were added since, and while the server drains: over HTTP/2 that is a GOAWAY. To close idle
// connections at once, as http.Server does, would fail a request that is on its way on one of them.
func (s *Server) restFront(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn := listen.FromContext(r.Context())
		r.TLS = conn.TLS()
		if s.ready.get() == stateDraining || time.Since(conn.Opened()) > s.cfg.ConnectionAge {
			w.Header().Set("Connection", "close")
		}
		if r.ProtoMajor == 1 {
			size := bodySize(r)
			conn.Begin(size)
			defer conn.End(size)
		}
		next.ServeHTTP(w, r)
	})
}

// bodySize returns how many bytes of a body may be read into memory.
func bodySize(r *http.Request) int64 {
	if r.ContentLength < 0 {
		return call.MaxMessageBytes
	}
	return min(r.ContentLength, call.MaxMessageBytes)
}

// overloaded reports whether a request over REST is beyond its connection's share of the requests that may wait for
// their clients, and whether its refusal must have no body: a client that reads no bodies would keep the refusals open too.
func (s *Server) overloaded(ctx context.Context) (refuse, brief bool) {
	conn := listen.FromContext(ctx)
	if conn.Admit() {
		return false, false
	}
	s.refused(requestsLimit)
	return true, conn.Waiting() > 2*listen.Few
}
