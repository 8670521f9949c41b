package server

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log" //nolint:depguard // http.Server takes no other
	"log/slog"
	"net"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/credentials"

	"github.com/ForstaLabs/ephemeral-token-service/internal/lograte"
)

// failedHandshakes counts and logs the TLS handshakes that fail, on each listener for callers.
type failedHandshakes struct {
	*prometheus.CounterVec
	log *slog.Logger
}

const (
	onGRPC = "gRPC"
	onHTTP = "HTTP"
)

func newFailedHandshakes(log *slog.Logger) failedHandshakes {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tokend_tls_handshake_failures_total",
		Help: "TLS handshakes that failed, such as for a missing or foreign client certificate.",
	}, []string{"listener"})
	v.WithLabelValues(onGRPC) // at 0, so that the first one is an increase
	v.WithLabelValues(onHTTP)
	return failedHandshakes{v, lograte.Kind(log, "handshake")}
}

// plainAlert is what crypto/tls makes of an alert that is not encrypted where everything should be. OpenSSL's clients, which are most
// that are not in Go, send one when they do not believe the server's certificate.
const plainAlert = "tls: bad record MAC"

// add takes note of one. A connection that is closed before it has said anything is a probe of TCP, and no failure.
func (f failedHandshakes) add(listener, peer, cause string, err error) {
	if cause == io.EOF.Error() {
		return
	}
	if strings.HasSuffix(cause, plainAlert) {
		cause = "the client refuses this server's certificate, most likely: " + plainAlert
	}
	f.WithLabelValues(listener).Inc()
	attrs := append([]slog.Attr{slog.String("listener", listener), slog.String("peer", peer)}, handshakeCause(cause, err)...)
	f.log.LogAttrs(context.Background(), slog.LevelWarn, "TLS handshake failed", attrs...)
}

// grpcCredentials are those of tlsConfig for gRPC, nil for plaintext.
func (c *Config) grpcCredentials(failed failedHandshakes) credentials.TransportCredentials {
	config := c.tlsConfig("h2")
	if config == nil {
		return nil
	}
	return watchedCredentials{credentials.NewTLS(config), failed}
}

type watchedCredentials struct {
	credentials.TransportCredentials
	failed failedHandshakes
}

// ServerHandshake implements credentials.TransportCredentials.
func (c watchedCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		cause := err.Error()
		if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
			cause = "the client speaks no TLS"
		}
		c.failed.add(onGRPC, raw.RemoteAddr().String(), cause, err)
	}
	return conn, info, err
}

// errorLog is what an http.Server logs to. It tells of failed handshakes there, and nowhere else.
func (f failedHandshakes) errorLog(other io.Writer) *log.Logger {
	return log.New(handshakeLines{other, f}, "", 0)
}

type handshakeLines struct {
	other  io.Writer
	failed failedHandshakes
}

// Write takes a line of net/http.
func (l handshakeLines) Write(line []byte) (int, error) {
	said, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "http: TLS handshake error from ")
	if !ok {
		return l.other.Write(line)
	}
	peer, cause, _ := strings.Cut(said, ": ")
	if cause == "client sent an HTTP request to an HTTPS server" {
		cause = "the client speaks no TLS"
	}
	l.failed.add(onHTTP, peer, cause, nil)
	return len(line), nil
}
