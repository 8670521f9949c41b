package testutil

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/testcert"
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
	CA                        testcert.Authority
	Pool                      *x509.CertPool
	Client                    tls.Certificate
	Untrusted                 tls.Certificate // signed by another authority
}

// NewCertificates makes an authority, a client certificate and files for a server.
func NewCertificates(t testing.TB) Certificates {
	t.Helper()
	dir := t.TempDir()
	ca := testcert.NewAuthority(t)
	other := testcert.NewAuthority(t)
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
	testcert.WritePEM(t, c.CAFile, "CERTIFICATE", ca.Cert.Raw)
	leaf := ca.Issue(t, "localhost")
	testcert.WritePEM(t, c.CertFile, "CERTIFICATE", leaf.Certificate[0])
	testcert.WritePEM(t, c.KeyFile, "PRIVATE KEY", testcert.MarshalKey(t, leaf.PrivateKey))
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
