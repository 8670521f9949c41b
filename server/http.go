package server

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/call"
	"github.com/ForstaLabs/ephemeral-token-service/internal/lograte"
)

// idleTimeout is when an idle connection is closed. It is longer than the 600 s for which load balancers keep one: a request that
// is sent while the server closes the connection fails.
const idleTimeout = 620 * time.Second

// newHTTPServer has the limits of every HTTP listener. A client that sends slowly is gone after ReadTimeout.
func newHTTPServer(handler http.Handler, ceiling time.Duration, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:        handler,
		ErrorLog:       slog.NewLogLogger(lograte.Kind(log, "net/http").Handler(), slog.LevelWarn),
		MaxHeaderBytes: call.MaxHeaderBytes,
		// OPTIONS * is a route that does not exist, like any other, and not for net/http to answer.
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            5 * time.Second,
		ReadTimeout:                  8 * time.Second,
		WriteTimeout:                 ceiling + 30*time.Second,
		IdleTimeout:                  idleTimeout,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams,
			SendPingTimeout:      keepaliveTime,
			PingTimeout:          keepaliveTimeout,
			WriteByteTimeout:     10 * time.Second,
			// As on the gRPC listener, and not a megabyte for whoever keeps bodies back.
			MaxReceiveBufferPerStream:     call.MaxMessageBytes,
			MaxReceiveBufferPerConnection: 4 * call.MaxMessageBytes,
		},
	}
}

// restProtocols are those of the REST listener. Without TLS, whoever knows that it speaks HTTP/2 begins with that (RFC 9113 §3.3), as
// meshes and proxies do that encrypt in its place; its limits are those of HTTP/2 with TLS.
func restProtocols(tls bool) *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetHTTP2(tls)
	p.SetUnencryptedHTTP2(!tls)
	return p
}
