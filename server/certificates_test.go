package server_test

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
	"sync"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// certificates are a test's own authority, and what it signed.
type certificates struct {
	caFile, certFile, keyFile string
	ca                        authority
	pool                      *x509.CertPool
	client                    tls.Certificate
	untrusted                 tls.Certificate // signed by another authority
}

func makeCertificates(t testing.TB) certificates {
	t.Helper()
	dir := t.TempDir()
	ca := newAuthority(t)
	other := newAuthority(t)
	c := certificates{
		ca:        ca,
		caFile:    filepath.Join(dir, "ca.pem"),
		certFile:  filepath.Join(dir, "server.pem"),
		keyFile:   filepath.Join(dir, "server.key"),
		pool:      x509.NewCertPool(),
		client:    ca.issue(t, "client.test"),
		untrusted: other.issue(t, "client.test"),
	}
	c.pool.AddCert(ca.cert)
	writePEM(t, c.caFile, "CERTIFICATE", ca.cert.Raw)
	leaf := ca.issue(t, "localhost")
	writePEM(t, c.certFile, "CERTIFICATE", leaf.Certificate[0])
	writePEM(t, c.keyFile, "PRIVATE KEY", marshalKey(t, leaf))
	return c
}

// watch has the server go by the files, and look at them more often than anybody would want it to, until the test ends.
func (c certificates) watch(t testing.TB, cfg *server.Config, mode security) {
	t.Helper()
	files := &reload.Watcher{Logger: cfg.Logger, Metrics: cfg.Metrics, Interval: 10 * time.Millisecond}
	var err error
	if cfg.TLS.Certificate, err = files.Certificate("server", c.certFile, c.keyFile, reload.ForServers, nil); err != nil {
		t.Fatal(err)
	}
	if mode == mutualTLS {
		if cfg.TLS.ClientCAs, err = files.Authorities("client_ca", c.caFile, nil, nil); err != nil {
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

func (c certificates) clientConfig(mode security) *tls.Config {
	cfg := &tls.Config{RootCAs: c.pool, MinVersion: tls.VersionTLS12}
	if mode == mutualTLS {
		cfg.Certificates = []tls.Certificate{c.client}
	}
	return cfg
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) authority {
	t.Helper()
	return newAuthorityUntil(t, time.Now().Add(time.Hour))
}

func newAuthorityUntil(t testing.TB, notAfter time.Time) authority {
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
	return authority{cert, key}
}

func (a authority) issue(t testing.TB, name string) tls.Certificate {
	t.Helper()
	return a.issueUntil(t, name, time.Now().Add(time.Hour))
}

func (a authority) issueUntil(t testing.TB, name string, notAfter time.Time) tls.Certificate {
	t.Helper()
	return a.issueAs(t, func(c *x509.Certificate) {
		c.NotAfter = notAfter
		c.Subject, c.DNSNames, c.IPAddresses = pkix.Name{CommonName: name}, []string{name}, []net.IP{net.IPv4(127, 0, 0, 1)}
	})
}

// issueAs makes a certificate for both ends of a connection that names nobody, and changes it.
func (a authority) issueAs(t testing.TB, change func(*x509.Certificate)) tls.Certificate {
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
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func marshalKey(t testing.TB, cert tls.Certificate) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func writePEM(t testing.TB, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, encodePEM(kind, der), 0o600); err != nil {
		t.Fatal(err)
	}
}
