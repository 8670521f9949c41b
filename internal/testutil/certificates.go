package testutil

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// CheckNoHandshake checks that TLS on both listeners refuses the certificate, or its absence if it
// is nil.
func (s *Service) CheckNoHandshake(t *testing.T, cert *tls.Certificate) {
	t.Helper()
	for _, addr := range []string{s.GRPCAddr().String(), s.HTTPAddr().String()} {
		cfg := s.ClientTLSWith(cert)
		cfg.NextProtos = []string{"h2"}
		conn, err := (&tls.Dialer{Config: cfg}).DialContext(Context(t), "tcp", addr)
		if err == nil { // a client finishes before the server sees its certificate
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			for err == nil { // skip what the server wrote before that
				_, err = conn.Read(make([]byte, 1024))
			}
			_ = conn.Close()
		}
		if !strings.Contains(err.Error(), "remote error: tls: ") {
			t.Errorf("%s: %v, want a TLS alert", addr, err)
		}
	}
}

// WantNoHandshake checks that a call failed in the handshake.
func WantNoHandshake(t *testing.T, got Outcome) {
	t.Helper()
	overGRPC := got.Code == codes.Unavailable
	overREST := got.Code == codes.Unknown && strings.HasPrefix(got.Message, "test: ")
	if !overGRPC && !overREST || got.HTTP != 0 || got.Reason != "" {
		t.Errorf("got %v %s %d (%q), want no handshake", got.Code, got.Reason, got.HTTP, got.Message)
	}
}

// Certificates are the certificates of a test, and their authority.
type Certificates struct {
	CAFile, CertFile, KeyFile string
	CA                        Authority
	Pool                      *x509.CertPool
	Client                    tls.Certificate
	Untrusted                 tls.Certificate // signed by another authority
}

// NewCertificates makes an authority, a client certificate and files for a server.
func NewCertificates(t testing.TB) Certificates {
	t.Helper()
	dir := t.TempDir()
	ca := NewAuthority(t)
	other := NewAuthority(t)
	c := Certificates{
		CA:        ca,
		CAFile:    filepath.Join(dir, "ca.pem"),
		CertFile:  filepath.Join(dir, "server.pem"),
		KeyFile:   filepath.Join(dir, "server.key"),
		Pool:      x509.NewCertPool(),
		Client:    ca.Issue(t, "client.test"),
		Untrusted: other.Issue(t, "client.test"),
	}
	c.Pool.AddCert(ca.Cert)
	WritePEM(t, c.CAFile, "CERTIFICATE", ca.Cert.Raw)
	leaf := ca.Issue(t, "localhost")
	WritePEM(t, c.CertFile, "CERTIFICATE", leaf.Certificate[0])
	WritePEM(t, c.KeyFile, "PRIVATE KEY", MarshalKey(t, leaf))
	return c
}

// watch makes the server use the files, and check them every 10 ms, until the test ends.
func (c Certificates) watch(t testing.TB, cfg *server.Config, mode Security) {
	t.Helper()
	files := &reload.Watcher{Logger: cfg.Logger, Interval: 10 * time.Millisecond}
	cfg.CheckFiles = files.Check
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(files)
	}
	var err error
	if cfg.TLS.Certificate, err = files.Certificate("server", c.CertFile, c.KeyFile, reload.ForServers, nil); err != nil {
		t.Fatal(err)
	}
	if mode == MutualTLS {
		if cfg.TLS.ClientCAs, err = files.Authorities("client_ca", c.CAFile, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	watching.Go(func() { files.Run(ctx) })
	t.Cleanup(func() {
		stop()
		watching.Wait()
	})
}

// ClientConfig returns the configuration of a client that trusts the authority and, with MutualTLS,
// has a certificate.
func (c Certificates) ClientConfig(mode Security) *tls.Config {
	cfg := &tls.Config{RootCAs: c.Pool, MinVersion: tls.VersionTLS12}
	if mode == MutualTLS {
		cfg.Certificates = []tls.Certificate{c.Client}
	}
	return cfg
}

// Authority signs certificates.
type Authority struct {
	Cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority makes an authority that is valid for an hour.
func NewAuthority(t testing.TB) Authority {
	t.Helper()
	return NewAuthorityUntil(t, time.Now().Add(time.Hour))
}

// NewAuthorityUntil makes an authority that is valid until notAfter.
func NewAuthorityUntil(t testing.TB, notAfter time.Time) Authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return Authority{cert, key}
}

// Issue signs a certificate for a DNS name that is valid for an hour.
func (a Authority) Issue(t testing.TB, name string) tls.Certificate {
	t.Helper()
	return a.IssueUntil(t, name, time.Now().Add(time.Hour))
}

// IssueUntil signs a certificate for a DNS name that is valid until notAfter.
func (a Authority) IssueUntil(t testing.TB, name string, notAfter time.Time) tls.Certificate {
	t.Helper()
	return a.IssueAs(t, func(c *x509.Certificate) {
		c.NotAfter = notAfter
		c.Subject, c.DNSNames, c.IPAddresses = pkix.Name{CommonName: name}, []string{name}, []net.IP{net.IPv4(127, 0, 0, 1)}
	})
}

// IssueAs signs a certificate for clients and servers without names, after change.
func (a Authority) IssueAs(t testing.TB, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, a.Cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// MarshalKey returns the private key of a certificate as PKCS #8.
func MarshalKey(t testing.TB, cert tls.Certificate) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// EncodePEM returns one PEM block.
func EncodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// WritePEM writes one PEM block to a file.
func WritePEM(t testing.TB, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, EncodePEM(kind, der), 0o600); err != nil {
		t.Fatal(err)
	}
}
