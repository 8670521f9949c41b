package server

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/credentials"

	"github.com/ForstaLabs/ephemeral-token-service/internal/listen"
	"github.com/ForstaLabs/ephemeral-token-service/internal/lograte"
)

// failedHandshakes counts and logs failed TLS handshakes.
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
	return failedHandshakes{v, lograte.Kind(log, lograte.Handshake)}
}

// plainAlert is how crypto/tls reports an alert that should be encrypted and is not. OpenSSL
// clients send one when they do not trust the server's certificate.
const plainAlert = "tls: bad record MAC"

// on returns the function that counts and logs the failed handshakes of a listener.
func (f failedHandshakes) on(listener string) func(peer net.Addr, err error) {
	return func(peer net.Addr, err error) {
		cause := err.Error()
		noTLS, ok := errors.AsType[tls.RecordHeaderError](err)
		switch {
		case ok && noTLS.Conn != nil:
			cause = "the client speaks no TLS"
			if listener == onHTTP { // the answer of net/http when it does the handshake
				_, _ = io.WriteString(noTLS.Conn, "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
			}
		case strings.HasSuffix(cause, plainAlert):
			cause = "the client refuses this server's certificate, most likely: " + plainAlert
		}
		f.WithLabelValues(listener).Inc()
		attrs := []slog.Attr{slog.String("listener", listener), slog.String("peer", peer.String())}
		f.log.LogAttrs(context.Background(), slog.LevelWarn, "TLS handshake failed", append(attrs, handshakeCause(cause, err)...)...)
	}
}

// grpcCredentials returns credentials that use the listener's TLS, or nil for plaintext.
func (c *Config) grpcCredentials() credentials.TransportCredentials {
	if c.TLS.Certificate == nil {
		return nil
	}
	return listenerCredentials{credentials.NewTLS(nil)}
}

// listenerCredentials are grpc-go's TLS credentials for connections whose listener does the
// handshake.
type listenerCredentials struct {
	credentials.TransportCredentials
}

// errNoHTTP2 means that the client did not negotiate HTTP/2, which gRPC needs.
var errNoHTTP2 = errors.New("the client does not offer h2 by ALPN")

// ServerHandshake implements credentials.TransportCredentials.
func (listenerCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn := raw.(*listen.Conn)
	if err := conn.Handshake(); err != nil {
		return nil, nil, err
	}
	state := conn.TLS()
	if state.NegotiatedProtocol != "h2" {
		return nil, nil, errNoHTTP2
	}
	return conn, credentials.TLSInfo{
		State:          *state,
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}
