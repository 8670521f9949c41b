package load

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
	"github.com/ForstaLabs/ephemeral-token-service/internal/spiffe"
	"github.com/ForstaLabs/ephemeral-token-service/internal/spiffe/spiffetest"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// startSPIFFE runs a service that has its certificates from the agent, and the policy. Its clients
// trust the domain as it is now.
func startSPIFFE(t *testing.T, agent *spiffetest.Agent, domain *spiffetest.TrustDomain, policy string) (s *testutil.Service, audit *testutil.Buffer) {
	t.Helper()
	audit = &testutil.Buffer{}
	s = testutil.Start(t, testutil.Plaintext, func(cfg *server.Config, _ *atlas.Config) {
		cfg.Metrics = prometheus.NewRegistry()
		files := &reload.Watcher{Logger: cfg.Logger}
		cfg.CheckFiles = files.Check
		source := spiffe.New(agent.Addr(), files, cfg.Logger)
		ctx, stop := context.WithCancel(context.Background())
		var watching sync.WaitGroup
		watching.Go(func() { source.Run(ctx) })
		t.Cleanup(func() {
			stop()
			watching.Wait()
		})
		if err := source.Await(testutil.Context(t)); err != nil {
			t.Fatal(err)
		}
		cfg.TLS = server.TLS{Certificate: source.Certificate, ClientCAs: source.ClientCAs, CheckClient: source.CheckClient}
		cfg.Audit = slog.New(slog.NewJSONHandler(audit, nil))
		cfg.Metrics.MustRegister(files)
		var err error
		if cfg.Auth, err = auth.New(auth.Config{Policy: testutil.MustPolicy(t, policy)}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cfg.Auth.Close)
	})
	s.Mode, s.Certs.Pool = testutil.MutualTLS, domain.Pool()
	return s, audit
}

// svidPolicy lets in web with an Atlas JWT of its own.
const svidPolicy = `callers: [{spiffe_id: "spiffe://prod.internal/web", allow: [CreateToken], profile: passthrough}]`

// TestSVID: a caller is known by its SVID, over both transports, and whoever has none of the
// server's own trust domain does not get as far as a call.
func TestSVID(t *testing.T) {
	domain, other := spiffetest.NewTrustDomain(t, "prod.internal"), spiffetest.NewTrustDomain(t, "partner.example")
	agent := spiffetest.NewAgent(t)
	agent.GiveFederated([]*spiffetest.TrustDomain{other}, domain.Issue("/tokend"))
	agent.Start()
	s, audit := startSPIFFE(t, agent, domain, svidPolicy)
	as := func(own *spiffetest.SVID) *tls.Certificate {
		cert := own.TLS()
		return &cert
	}
	for transport, c := range s.CallersAs(t, as(domain.Issue("/web"))) {
		t.Run(transport, func(t *testing.T) {
			before := strings.Count(audit.String(), `"caller":{"kind":"spiffe","name":"spiffe://prod.internal/web"}`)
			testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
			testutil.WantNotPermitted.Check(t, c.Call(testutil.Context(t), testutil.Delete, testutil.Credential(s.Atlas)...))
			if n := strings.Count(audit.String(), `"caller":{"kind":"spiffe","name":"spiffe://prod.internal/web"}`); n != before+2 {
				t.Errorf("%d of 2 calls are on record as the caller's:\n%s", n-before, audit)
			}
		})
	}
	for _, c := range s.CallersAs(t, as(domain.Issue("/job"))) {
		testutil.WantNotPermitted.Check(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
	}
	testutil.NotCalled(t, s.Atlas)
	for name, cert := range map[string]*tls.Certificate{
		"no certificate":               nil,
		"a federated trust domain":     as(other.Issue("/web")),
		"an authority of the name":     as(spiffetest.NewTrustDomain(t, "prod.internal").Issue("/web")),
		"another domain's, our signer": as(domain.Issue("/web", func(c *x509.Certificate) { c.URIs[0].Host = "partner.example" })),
		"our domain's, another signer": as(other.Issue("/web", func(c *x509.Certificate) { c.URIs[0].Host = "prod.internal" })),
		"a DNS name only":              as(domain.Issue("/web", func(c *x509.Certificate) { c.URIs = nil })),
		"an authority":                 as(domain.Issue("/web", func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true })),
		"expired":                      as(domain.Issue("/web", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) })),
	} {
		t.Run(name, func(t *testing.T) {
			s.CheckNoHandshake(t, cert)
			for _, c := range s.CallersAs(t, cert) {
				testutil.WantNoHandshake(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
			}
		})
	}
	if !strings.Contains(s.Log.String(), "the client certificate is no X.509-SVID of prod.internal: ") {
		t.Error("the log does not say what is wrong with a certificate of ours that is no SVID")
	}
}

// TestSVIDNotDemanded: with a rule for an Atlas JWT a caller need not show a certificate, but one
// that it shows has to be good.
func TestSVIDNotDemanded(t *testing.T) {
	domain := spiffetest.NewTrustDomain(t, "prod.internal")
	s, _ := startSPIFFE(t, spiffetest.StartAgent(t, domain.Issue("/tokend")), domain,
		`callers: [{spiffe_id: "spiffe://prod.internal/web", allow: [DeleteToken], profile: passthrough}, {atlas_jwt: true, allow: [CreateToken], profile: passthrough}]`)
	for _, c := range s.CallersAs(t, nil) {
		testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
	}
	nameless := domain.Issue("/web", func(c *x509.Certificate) { c.URIs = nil }).TLS()
	s.CheckNoHandshake(t, &nameless)
}
