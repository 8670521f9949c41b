package faults

import (
	"crypto/x509"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/testcert"
)

// TestFault80ExpiredFiles replaces the certificate and the authorities of a running server by
// expired ones. New connections are still accepted, and /readyz and /metrics report both files.
func TestFault80ExpiredFiles(t *testing.T) {
	s := testutil.Start(t, testutil.MutualTLS)
	expired := func(c *x509.Certificate) {
		c.DNSNames, c.NotAfter = []string{"localhost"}, time.Now().Add(-time.Minute)
	}
	leaf := s.Certs.CA.IssueAs(t, expired)
	testcert.WritePEM(t, s.Certs.KeyFile, "PRIVATE KEY", testcert.MarshalKey(t, leaf.PrivateKey))
	testcert.WritePEM(t, s.Certs.CertFile, "CERTIFICATE", leaf.Certificate[0])
	testcert.WritePEM(t, s.Certs.CAFile, "CERTIFICATE", testcert.NewAuthority(t, expired).Cert.Raw)
	testutil.Eventually(t, func() bool {
		code, body := s.Get(t, "/readyz")
		return code == http.StatusOK && strings.Count(body, "and the one in use is valid") == 2
	}, "/readyz does not report both files")
	for _, c := range s.Callers(t) {
		testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
	}
	_, metrics := s.Get(t, "/metrics")
	for _, name := range []string{"server", "client_ca"} {
		if want := `tokend_file_last_reload_successful{kind="certificate",name="` + name + `"} 0`; !strings.Contains(metrics, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
}
