package server

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
)

// TestFault99 checks that a peer's text in the cause of a log line is truncated.
func TestFault99(t *testing.T) {
	t.Parallel()
	clientEnd, serverEnd := net.Pipe()
	go func() {
		var names []string
		for n := range 200 {
			names = append(names, fmt.Sprintf("%03d%s", n, strings.Repeat("x", 200)))
		}
		client := tls.Client(clientEnd, &tls.Config{InsecureSkipVerify: true, NextProtos: names})
		_ = client.Handshake()
		_ = clientEnd.Close()
	}()
	s := tls.Server(serverEnd, &tls.Config{NextProtos: []string{"h2"}, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return nil, errors.New("not reached")
	}})
	err := s.Handshake()
	_, _ = io.Copy(io.Discard, serverEnd)
	if err == nil || len(err.Error()) < 10_000 {
		t.Fatalf("the handshake fails with %v, want a cause with the protocols", err)
	}
	if got := handshakeCause(err.Error(), err)[0].Value.String(); len(got) > maxPeerText+len("…") || !strings.HasPrefix(err.Error(), strings.TrimSuffix(got, "…")) {
		t.Errorf("the cause has %d bytes: %s", len(got), got)
	}
	for length := range 10 {
		if got := cutPeerText(strings.Repeat("x", maxPeerText-length) + strings.Repeat("ü", 100)); !strings.HasSuffix(got, "…") || strings.ContainsRune(got, '\uFFFD') || len(got) > maxPeerText+len("…") {
			t.Errorf("cut to %q", got)
		}
	}
}

// TestHandshakeCause checks that the log names the refused certificate, marked as unverified and
// truncated.
func TestHandshakeCause(t *testing.T) {
	t.Parallel()
	cert := &x509.Certificate{
		Subject:      pkix.Name{CommonName: "web" + strings.Repeat("x", 1000)},
		SerialNumber: big.NewInt(0xabc),
		DNSNames:     []string{"web.internal"},
		IPAddresses:  []net.IP{net.IPv4(192, 0, 2, 1)},
		URIs:         []*url.URL{{Scheme: "spiffe", Host: "prod.internal", Path: "/web"}},
	}
	err := fmt.Errorf("handshake: %w", &tls.CertificateVerificationError{
		UnverifiedCertificates: []*x509.Certificate{cert}, Err: x509.UnknownAuthorityError{},
	})
	attrs := handshakeCause("refused", err)
	if len(attrs) != 2 || attrs[1].Key != "unverified_certificate" {
		t.Fatalf("got %v", attrs)
	}
	want := fmt.Sprintf("[subject=%s san=web.internal, spiffe://prod.internal/web, 192.0.2.1 serial=abc]", cutPeerText("CN="+cert.Subject.CommonName))
	if got := fmt.Sprint(attrs[1].Value.Group()); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if attrs := handshakeCause("EOF", io.EOF); len(attrs) != 1 {
		t.Errorf("without a certificate: %v", attrs)
	}
}

func TestWhereREST(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		addr   net.Addr
		secure bool
		want   string
	}{
		{nil, true, "off"},
		{&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8080}, false, "on http://127.0.0.1:8080"},
		{&net.TCPAddr{IP: net.IPv6zero, Port: 8080}, true, "on https://HOST:8080"},
		{&net.TCPAddr{IP: net.IPv4zero, Port: 80}, false, "on http://HOST:80"},
	} {
		if got := whereREST(tc.addr, tc.secure); got != tc.want {
			t.Errorf("%v: %q, want %q", tc.addr, got, tc.want)
		}
	}
}
