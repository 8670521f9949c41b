//go:build unix

package main_test

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/testcert"
)

// certificates are the PEM files of an authority, and of a server and a client that it signed.
type certificates struct {
	caFile, serverCert, serverKey, clientCert, clientKey string

	pool   *x509.CertPool
	client tls.Certificate
	ca     testcert.Authority
}

func makeCertificates(t *testing.T) certificates {
	t.Helper()
	dir := t.TempDir()
	c := certificates{
		caFile:     filepath.Join(dir, "ca.pem"),
		serverCert: filepath.Join(dir, "server.pem"), serverKey: filepath.Join(dir, "server-key.pem"),
		clientCert: filepath.Join(dir, "client.pem"), clientKey: filepath.Join(dir, "client-key.pem"),
		pool: x509.NewCertPool(), ca: testcert.NewAuthority(t),
	}
	c.pool.AddCert(c.ca.Cert)
	testcert.WritePEM(t, c.caFile, "CERTIFICATE", c.ca.Cert.Raw)
	c.issue(t, c.serverCert, c.serverKey, func(cert *x509.Certificate) {
		cert.DNSNames, cert.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
		cert.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	c.client = c.issue(t, c.clientCert, c.clientKey, func(cert *x509.Certificate) {
		cert.Subject, cert.DNSNames = pkix.Name{CommonName: "Test client"}, []string{"web.internal"}
		cert.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	})
	return c
}

// flags are those of mutual TLS, and more.
func (c certificates) flags(more ...string) []string {
	return append([]string{"--tls-cert-file=" + c.serverCert, "--tls-key-file=" + c.serverKey, "--tls-client-ca-file=" + c.caFile}, more...)
}

// issue signs a certificate after change, and writes it and its key to files.
func (c certificates) issue(t *testing.T, certFile, keyFile string, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	cert := c.ca.IssueAs(t, change)
	replace(t, keyFile, string(testcert.EncodePEM("PRIVATE KEY", testcert.MarshalKey(t, cert.PrivateKey))))
	replace(t, certFile, string(testcert.EncodePEM("CERTIFICATE", cert.Certificate[0])))
	return cert
}

// TestAtlasCertificateExpiry checks that /metrics has the expiry of the certificates for Atlas.
func TestAtlasCertificateExpiry(t *testing.T) {
	t.Parallel()
	certs := makeCertificates(t)
	s := startServe(t, "--atlas-cert-file="+certs.clientCert, "--atlas-key-file="+certs.clientKey, "--atlas-ca-file="+certs.caFile)
	metrics := probe(t, s.admin, "/metrics")
	for name, cert := range map[string]*x509.Certificate{"atlas_ca": certs.ca.Cert, "atlas_client": certs.client.Leaf} {
		line := fmt.Sprintf("\ntokend_certificate_expiry_timestamp_seconds{certificate=%q} %v\n", name, float64(cert.NotAfter.Unix()))
		if !strings.Contains(metrics, line) {
			t.Errorf("want %s in:\n%s", line, metrics)
		}
	}
}
