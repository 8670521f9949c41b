package atlas

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

func TestTLS(t *testing.T) {
	good, pool := goodCertificate()
	expired, expiredPool := newCertificate(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	early, earlyPool := newCertificate(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })
	elsewhere, elsewherePool := newCertificate(func(c *x509.Certificate) { c.IPAddresses = nil; c.DNSNames = []string{"elsewhere.example"} })
	stranger, _ := newCertificate(nil)

	serve := func(config *tls.Config) func(net.Conn) {
		return func(conn net.Conn) {
			tlsConn := tls.Server(conn, config)
			if tlsConn.Handshake() == nil {
				_, _ = io.Copy(io.Discard, tlsConn)
			}
		}
	}
	certificateOnly := func(cert tls.Certificate) func(net.Conn) {
		return serve(&tls.Config{Certificates: []tls.Certificate{cert}})
	}
	for _, tc := range []struct {
		name        string
		serve       func(net.Conn)
		roots       *x509.CertPool
		unverified  bool // the certificate is the reason
		mayHaveSent bool
	}{
		{name: "expired", serve: certificateOnly(expired), roots: expiredPool, unverified: true},
		{name: "not valid yet", serve: certificateOnly(early), roots: earlyPool, unverified: true},
		{name: "for another host", serve: certificateOnly(elsewhere), roots: elsewherePool, unverified: true},
		{name: "self-signed", serve: certificateOnly(stranger), roots: pool, unverified: true},
		{name: "self-signed, against the system's roots", serve: certificateOnly(stranger), unverified: true},
		{name: "TLS 1.1 only", roots: pool, serve: serve(&tls.Config{
			Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11,
		})},
		{name: "no protocol in common", roots: pool, serve: serve(&tls.Config{
			Certificates: []tls.Certificate{good}, NextProtos: []string{"planted"},
		})},
		// TLS 1.3 refuses a client after its handshake is done.
		{name: "wants a client certificate", roots: pool, mayHaveSent: true, serve: serve(&tls.Config{
			Certificates: []tls.Certificate{good}, ClientAuth: tls.RequireAnyClientCert,
		})},
		{name: "plain HTTP", roots: pool, serve: func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 1024))
			_, _ = io.WriteString(conn, "HTTP/1.1 400 planted\r\nConnection: close\r\n\r\n")
		}},
		{name: "not TLS at all", roots: pool, serve: func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 1024))
			_, _ = io.WriteString(conn, "planted, not TLS")
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newRawServer(t, tc.serve)
			c := newTestClient(t, Config{BaseURL: "https://" + s.addr, RootCAs: tc.roots})
			_, err := c.CreateEphemeralToken(t.Context(), plantedJWT)
			if got, want := outcomeOf(t, OpCreate, err), (outcome{Kind: KindTLS, Sent: tc.mayHaveSent}); got != want {
				t.Errorf("got %+v, want %+v: %v", got, want, err)
			}
			if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok != tc.unverified {
				t.Errorf("a CertificateVerificationError: %v, want %v: %v", ok, tc.unverified, err)
			}
		})
	}
}

func TestTLSMinimumIs12(t *testing.T) {
	c := newTestClient(t, Config{BaseURL: "https://atlas.example"})
	if got := c.transport.Load().TLSClientConfig; got.MinVersion != tls.VersionTLS12 || got.InsecureSkipVerify {
		t.Errorf("MinVersion %#x, InsecureSkipVerify %v", got.MinVersion, got.InsecureSkipVerify)
	}
}
