package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/grpc/credentials"

	"github.com/ForstaLabs/ephemeral-token-service/internal/listen"
	"github.com/ForstaLabs/ephemeral-token-service/internal/lograte"
)

// TLS configures the gRPC and REST listeners. Its functions are called at each handshake, so that
// certificates can be replaced at run time.
type TLS struct {
	// Certificate returns the server's certificate, with any intermediates. If nil, the listeners
	// are plaintext.
	Certificate func() tls.Certificate
	// ClientCAs, if set, turns on mTLS: client certificates must be signed by one of these
	// authorities. A client without one is refused too, unless a rule of the current policy can
	// admit it.
	ClientCAs func() *x509.CertPool
	// CheckClient, if set, is a further check of a client certificate that one of ClientCAs has
	// signed. The chain is as the client sent it, its certificate first.
	CheckClient func(chain []*x509.Certificate) error
}

// Mode returns "off", "server" or "mutual".
func (t TLS) Mode() string {
	switch {
	case t.Certificate == nil:
		return "off"
	case t.ClientCAs == nil:
		return "server"
	}
	return "mutual"
}

// tlsConfig returns a configuration that uses the current certificate, authorities and policy at
// each handshake. A client certificate is always verified; the policy decides whether one is
// required.
func (c *Config) tlsConfig(protocols ...string) *tls.Config {
	// Without tickets, each mTLS connection is checked against the current authorities.
	base := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protocols, SessionTicketsDisabled: c.TLS.ClientCAs != nil}
	outer := base.Clone()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		current := base.Clone()
		current.Certificates = []tls.Certificate{c.TLS.Certificate()}
		if c.TLS.ClientCAs != nil {
			current.ClientAuth, current.ClientCAs = tls.RequireAndVerifyClientCert, c.TLS.ClientCAs()
			if c.Auth.AllowsWithoutCertificate() {
				current.ClientAuth = tls.VerifyClientCertIfGiven
			}
			current.VerifyConnection = c.TLS.verifyClient
		}
		return current, nil
	}
	return outer
}

// verifyClient runs CheckClient after crypto/tls has verified the certificate, if the client sent
// one.
func (t TLS) verifyClient(state tls.ConnectionState) error {
	if t.CheckClient == nil || len(state.PeerCertificates) == 0 {
		return nil
	}
	if err := t.CheckClient(state.PeerCertificates); err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: state.PeerCertificates, Err: err}
	}
	return nil
}

// failedHandshakes counts and logs failed TLS handshakes.
type failedHandshakes struct {
	*prometheus.CounterVec
	log *slog.Logger
}

const (
	onGRPC = "gRPC"
	onHTTP = "HTTP"
)

func newFailedHandshakes(registry *prometheus.Registry, log *slog.Logger) failedHandshakes {
	v := promauto.With(registry).NewCounterVec(prometheus.CounterOpts{
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
			cause = "the client does not use TLS"
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

// ServerHandshake implements credentials.TransportCredentials.
func (listenerCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn := raw.(*listen.Conn)
	if err := conn.Handshake(); err != nil {
		return nil, nil, err
	}
	return conn, credentials.TLSInfo{
		State:          *conn.TLS(),
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

// maxPeerText bounds how many bytes an unauthenticated peer can add to a log line.
const maxPeerText = 200

// cutPeerText truncates a text that a peer may have written.
func cutPeerText(text string) string {
	if len(text) <= maxPeerText {
		return text
	}
	end := maxPeerText
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "…"
}

// handshakeCause returns the log attributes of a failed handshake: the cause, and the client
// certificate if that was refused. The certificate is unverified: the client chose its text.
func handshakeCause(cause string, err error) []slog.Attr {
	attrs := []slog.Attr{slog.String("cause", cutPeerText(cause))}
	refused, ok := errors.AsType[*tls.CertificateVerificationError](err)
	if !ok || len(refused.UnverifiedCertificates) == 0 {
		return attrs
	}
	cert := refused.UnverifiedCertificates[0]
	names := slices.Concat(cert.DNSNames, cert.EmailAddresses)
	for _, uri := range cert.URIs {
		names = append(names, uri.String())
	}
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	return append(attrs, slog.Group("unverified_certificate",
		slog.String("subject", cutPeerText(cert.Subject.String())),
		slog.String("san", cutPeerText(strings.Join(names, ", "))),
		slog.String("serial", cutPeerText(cert.SerialNumber.Text(16))),
	))
}
