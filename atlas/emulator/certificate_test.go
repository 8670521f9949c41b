package emulator_test

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

// handshake connects as if to host and returns the server's certificate.
func handshake(em *emulator.Emulator, host string) (*x509.Certificate, error) {
	u, err := url.Parse(em.URL())
	if err != nil {
		return nil, err
	}
	conn, err := tls.Dial("tcp", u.Host, &tls.Config{RootCAs: em.CertPool(), ServerName: host})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0], nil
}

func TestCertificate(t *testing.T) {
	em := start(t, emulator.Config{})
	for _, host := range []string{"127.0.0.1", "::1", "localhost"} {
		leaf, err := handshake(em, host)
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		if _, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok {
			t.Errorf("key is a %T", leaf.PublicKey)
		}
		if left := time.Until(leaf.NotAfter); left < 24*time.Hour || left > 30*24*time.Hour {
			t.Errorf("valid for another %v", left)
		}
		if leaf.IsCA {
			t.Error("is an authority")
		}
	}
	if _, err := handshake(em, "atlas.forsta.io"); !errors.As(err, new(x509.HostnameError)) {
		t.Errorf("another host: %v", err)
	}
}

func TestCAPEM(t *testing.T) {
	em := start(t, emulator.Config{})
	block, rest := pem.Decode(em.CAPEM())
	if block == nil || block.Type != "CERTIFICATE" || len(rest) != 0 {
		t.Fatalf("%s", em.CAPEM())
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(certificate)
	if !pool.Equal(em.CertPool()) {
		t.Error("CertPool is something else")
	}
}

func TestBadCertificates(t *testing.T) {
	for kind, is := range map[emulator.CertificateKind]func(error) bool{
		emulator.ExpiredCertificate: func(err error) bool {
			var invalid x509.CertificateInvalidError
			return errors.As(err, &invalid) && invalid.Reason == x509.Expired
		},
		emulator.OtherHostCertificate:  func(err error) bool { return errors.As(err, new(x509.HostnameError)) },
		emulator.SelfSignedCertificate: func(err error) bool { return errors.As(err, new(x509.UnknownAuthorityError)) },
	} {
		t.Run(string(kind), func(t *testing.T) {
			em := start(t, emulator.Config{Certificate: kind})
			if _, err := handshake(em, "127.0.0.1"); !is(err) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestListenOnIPv6(t *testing.T) {
	probe, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 here")
	}
	probe.Close()
	em := start(t, emulator.Config{Addr: "[::1]:0"})
	createWith(em.Org(0).JWT()).field(t, em, 201, "token")
}
