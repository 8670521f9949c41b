package server

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/server/chain"
)

// newHTTPServer has the limits of every HTTP listener. A client that sends slowly is gone after ReadTimeout.
func newHTTPServer(handler http.Handler, ceiling time.Duration, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:        handler,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		MaxHeaderBytes: chain.MaxHeaderBytes,
		// OPTIONS * is a route that does not exist, like any other, and not for net/http to answer.
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            5 * time.Second,
		ReadTimeout:                  8 * time.Second,
		WriteTimeout:                 ceiling + 30*time.Second,
		IdleTimeout:                  75 * time.Second,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams,
			SendPingTimeout:      time.Minute,
			PingTimeout:          10 * time.Second,
			WriteByteTimeout:     10 * time.Second,
		},
	}
}
