//go:build unix

package main_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// TestAtlasCertificateExpiry checks that /metrics has the expiry of the certificates in use for
// Atlas, also after a replacement, and while a new file is unusable.
func TestAtlasCertificateExpiry(t *testing.T) {
	t.Parallel()
	certs := makeCertificates(t)
	first, err := tls.LoadX509KeyPair(certs.clientCert, certs.clientKey)
	if err != nil {
		t.Fatal(err)
	}
	atlasCA, err := os.ReadFile(certs.caFile)
	if err != nil {
		t.Fatal(err)
	}
	s := startServe(t, "--atlas-cert-file="+certs.clientCert, "--atlas-key-file="+certs.clientKey, "--atlas-ca-file="+certs.caFile)
	want := func(certificate string, cert *x509.Certificate) {
		t.Helper()
		line := fmt.Sprintf("\ntokend_certificate_expiry_timestamp_seconds{certificate=%q} %v\n", certificate, float64(cert.NotAfter.Unix()))
		if metrics := "\n" + probe(t, s.admin, "/metrics") + "\n"; !strings.Contains(metrics, line) {
			t.Errorf("want %s in:\n%s", line, metrics)
		}
	}
	want("atlas_ca", certs.ca.Cert)
	want("atlas_client", first.Leaf)
	poll(t, "another second", func() bool { return time.Now().Add(time.Hour).After(first.Leaf.NotAfter.Add(time.Second)) })
	named := func(cert *x509.Certificate) { cert.DNSNames = []string{"web.internal"} }
	second := certs.issue(t, certs.clientCert, certs.clientKey, named).Leaf
	poll(t, "the replacement", func() bool { return strings.Contains(s.stderr.String(), `"certificate replaced"`) })
	want("atlas_client", second)

	certs.issue(t, certs.clientCert, certs.serverKey, named) // its key is somewhere else
	replace(t, certs.caFile, string(atlasCA[:len(atlasCA)/2]))
	poll(t, "both to be reported", func() bool { return strings.Count(s.stderr.String(), "the last good one stays") == 2 })
	want("atlas_client", second)
	want("atlas_ca", certs.ca.Cert)
}
