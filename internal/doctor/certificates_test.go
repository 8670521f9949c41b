package doctor

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/ForstaLabs/ephemeral-token-service/internal/spiffe"
)

func TestCertificates(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	cert := func(life, left time.Duration, usage ...x509.ExtKeyUsage) *x509.Certificate {
		return &x509.Certificate{
			Subject: pkix.Name{CommonName: "c"}, DNSNames: []string{"tokend.internal"}, ExtKeyUsage: usage,
			NotBefore: now.Add(left - life), NotAfter: now.Add(left),
		}
	}
	fine, expired, soon := cert(365*day, 100*day), cert(365*day, -day), cert(365*day, 13*day)
	nameless := cert(365*day, 100*day)
	nameless.DNSNames = nil
	for name, test := range map[string]struct {
		use   certificateUse
		certs []*x509.Certificate
		want  Status
		says  string
	}{
		"a server's":                          {forServer, []*x509.Certificate{fine}, Passed, "CN=c, intermediates: 0, valid until 2030-04-11T00:00:00Z"},
		"a server's that expires soon":        {forServer, []*x509.Certificate{soon}, Doubted, "expires soon, at 2030-01-14T00:00:00Z"},
		"one that lives for days":             {forServer, []*x509.Certificate{cert(7*day, 2*day)}, Passed, "valid until"},
		"one that lives for days, at its end": {forServer, []*x509.Certificate{cert(7*day, 12*time.Hour)}, Doubted, "expires soon"},
		"an intermediate that has expired":    {forServer, []*x509.Certificate{fine, expired}, Failed, "expired at 2029-12-31"},
		"an unrelated intermediate":           {forServer, []*x509.Certificate{fine, fine}, Doubted, "certificate 2 (CN=c) has not signed"},
		"a server without a name":             {forServer, []*x509.Certificate{nameless}, Doubted, "names no host"},
		"a client's without a name":           {forClient, []*x509.Certificate{nameless}, Passed, ""},
		"a client's for clients":              {forClient, []*x509.Certificate{cert(365*day, 100*day, x509.ExtKeyUsageClientAuth)}, Passed, ""},
		"a client's for servers":              {forClient, []*x509.Certificate{cert(365*day, 100*day, x509.ExtKeyUsageServerAuth)}, Doubted, "lacks clientAuth"},
		"one that is not valid yet":           {forClient, []*x509.Certificate{cert(10*day, 20*day)}, Failed, "is not valid before 2030-01-11"},
		"authorities":                         {forCallers, []*x509.Certificate{fine, fine}, Passed, "authorities: 2"},
		"one of several has expired":          {forCallers, []*x509.Certificate{fine, expired}, Doubted, "expired"},
		"all have expired":                    {forCallers, []*x509.Certificate{expired, expired}, Failed, "expired"},
		"all have, beside the system's":       {forTrust, []*x509.Certificate{expired}, Doubted, "expired"},
	} {
		got := certificatesFinding(test.use, test.certs, now)
		if got.Status != test.want || !strings.Contains(got.Detail, test.says) || (got.Remedy == "") != (got.Status == Passed) {
			t.Errorf("%s: %+v, want %s and %q", name, got, test.want, test.says)
		}
	}
}

func TestSVID(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	cert := func(left time.Duration) *x509.Certificate {
		return &x509.Certificate{NotBefore: now.Add(-time.Hour), NotAfter: now.Add(left)}
	}
	domain := spiffeid.RequireTrustDomainFromString("prod.internal")
	for name, test := range map[string]struct {
		leaf, authority time.Duration
		want            Status
		says            string
	}{
		"good":           {time.Hour, time.Hour, Passed, "spiffe://prod.internal/tokend, valid until 2030-01-01T01:00:00Z; authorities of prod.internal: 1"},
		"at its end":     {time.Minute, time.Hour, Doubted, "spiffe://prod.internal/tokend: the certificate expires soon"},
		"expired":        {-time.Minute, time.Hour, Failed, "spiffe://prod.internal/tokend: the certificate expired at"},
		"expired bundle": {time.Hour, -time.Minute, Failed, "the bundle of prod.internal: "},
	} {
		got := svidFinding(&spiffe.SVID{
			ID:          spiffeid.RequireFromPath(domain, "/tokend"),
			Certificate: tls.Certificate{Leaf: cert(test.leaf)},
			Bundle:      x509bundle.FromX509Authorities(domain, []*x509.Certificate{cert(test.authority)}),
		}, now)
		if got.Status != test.want || !strings.Contains(got.Detail, test.says) || (got.Remedy == "") != (got.Status == Passed) {
			t.Errorf("%s: %+v, want %s and %q", name, got, test.want, test.says)
		}
	}
}
