package spiffe_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
	"github.com/ForstaLabs/ephemeral-token-service/internal/spiffe"
	"github.com/ForstaLabs/ephemeral-token-service/internal/spiffe/spiffetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

// source is a Source that runs until the test ends, with its log.
type source struct {
	*spiffe.Source
	t     *testing.T
	files *reload.Watcher

	mu  sync.Mutex
	log bytes.Buffer // guarded by mu
}

func (s *source) Write(line []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(line)
}

func (s *source) logged() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

func run(t *testing.T, addr string) *source {
	t.Helper()
	s := &source{t: t}
	log := slog.New(slog.NewTextHandler(s, nil))
	s.files = &reload.Watcher{Logger: log}
	s.Source = spiffe.New(addr, s.files, log)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	return s
}

// started returns a source that has its first SVID.
func started(t *testing.T, agent *spiffetest.Agent) *source {
	t.Helper()
	s := run(t, agent.Addr())
	s.await(patience, nil)
	return s
}

// await checks how a wait for the first SVID ends.
func (s *source) await(atMost time.Duration, want error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), atMost)
	defer cancel()
	if err := s.Await(ctx); !errors.Is(err, want) {
		s.t.Fatalf("the wait ends with %v, want %v\n%s", err, want, s.logged())
	}
}

// eventually waits until a condition holds.
func (s *source) eventually(what string, so func() bool) {
	s.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-tick.C:
		case <-deadline:
			s.t.Fatalf("this did not happen: %s\n%s", what, s.logged())
		}
	}
}

// has reports whether the SVID is the one in use.
func (s *source) has(own *spiffetest.SVID) bool {
	return bytes.Equal(s.Certificate().Certificate[0], own.Cert.Raw)
}

func (s *source) wantLogged(times int, what string) {
	s.t.Helper()
	if got := strings.Count(s.logged(), what); got != times {
		s.t.Errorf("the log has %d times, not %d: %s\n%s", got, times, what, s.logged())
	}
}

// metric returns the values of a metric, by its label "name" or "certificate".
func (s *source) metric(metric string) map[string]float64 {
	s.t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(s.files)
	families, err := registry.Gather()
	if err != nil {
		s.t.Fatal(err)
	}
	values := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == metric {
				values[m.GetLabel()[len(m.GetLabel())-1].GetValue()] = m.GetGauge().GetValue()
			}
		}
	}
	return values
}

// okay reports whether both certificates are those of the agent, according to the metrics.
func (s *source) okay() bool {
	s.t.Helper()
	values := s.metric("tokend_file_last_reload_successful")
	if len(values) != 2 || values["server"] != values["client_ca"] {
		s.t.Fatalf("the metrics are %v", values)
	}
	return values["server"] == 1
}

// expiry returns a certificate's expiry according to the metrics.
func (s *source) expiry(name string) time.Time {
	s.t.Helper()
	return time.Unix(int64(s.metric("tokend_certificate_expiry_timestamp_seconds")[name]), 0)
}

func TestCheckAddr(t *testing.T) {
	for addr, good := range map[string]bool{
		"unix:///run/spire/agent.sock": true, "unix:/run/spire/agent.sock": true,
		"": false, "/run/spire/agent.sock": false, "unix:agent.sock": false, "unix://run/agent.sock": false, "unix://": false,
		"tcp://127.0.0.1:8081": false, "http://localhost/agent.sock": false, "unix:///agent.sock?x": false, "unix:///a#b": false, "unix://a:b@/c": false, "unix:///%zz": false,
	} {
		if err := spiffe.CheckAddr(addr); (err == nil) != good {
			t.Errorf("%q: %v", addr, err)
		}
	}
}

// TestRotation checks that what the agent gives is used at once and shown like a file. The same
// again changes nothing, and something unusable leaves the last good one in use.
func TestRotation(t *testing.T) {
	domain := spiffetest.NewTrustDomain(t, "prod.internal")
	first := domain.Issue("/tokend", until(20*time.Minute))
	agent := spiffetest.StartAgent(t, first)
	s := started(t, agent)
	if !s.has(first) || !s.ClientCAs().Equal(domain.Pool()) || s.files.Check() != nil || !s.okay() {
		t.Errorf("the first is not in use: %v", s.files.Check())
	}
	s.wantLogged(1, `level=INFO msg="this process has a SPIFFE ID" agent=`+agent.Addr()+" spiffe_id=spiffe://prod.internal/tokend expires=")
	if got := s.expiry("server"); !got.Equal(first.Cert.NotAfter) {
		t.Errorf("it expires at %v, want %v", got, first.Cert.NotAfter)
	}

	second := domain.Issue("/tokend")
	agent.Give(second)
	s.eventually("the second is in use", func() bool { return s.has(second) })
	s.eventually("it is logged", func() bool {
		return strings.Contains(s.logged(), `msg="certificate replaced" agent=`+agent.Addr()+" certificate=server")
	})
	if got := s.expiry("server"); !got.Equal(second.Cert.NotAfter) {
		t.Errorf("it expires at %v, want %v", got, second.Cert.NotAfter)
	}

	next := domain.Rotated()
	third := next.Issue("/tokend")
	agent.Give(third)
	s.eventually("the new bundle is in use", func() bool { return s.ClientCAs().Equal(next.Pool()) })
	s.eventually("it is logged", func() bool { return strings.Contains(s.logged(), `certificate=client_ca`) })

	agent.Give(third)
	fourth := next.Issue("/other")
	agent.Give(fourth)
	s.eventually("the fourth is in use", func() bool { return s.has(fourth) })
	s.eventually("its ID is logged", func() bool { return strings.Contains(s.logged(), "spiffe://prod.internal/other") })
	s.eventually("it is logged", func() bool { return strings.Count(s.logged(), "certificate=server") == 3 })
	s.wantLogged(1, "certificate=client_ca")

	agent.Give(next.Issue("/tokend", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }))
	s.eventually("it is refused", func() bool { return errors.Is(s.files.Check(), spiffe.ErrUnusable) && !s.okay() })
	if !s.has(fourth) {
		t.Error("an unusable SVID has replaced a good one")
	}
	s.wantLogged(1, "level=WARN msg=\"the SPIFFE agent fails; the last good X.509-SVID stays, trying again\"")
	agent.Give(fourth)
	s.eventually("all is well", func() bool { return s.files.Check() == nil && s.okay() })
	s.eventually("that is logged", func() bool { return strings.Contains(s.logged(), "gives X.509-SVIDs again") })
	noKey(t, s.logged(), first, second, third, fourth)
}

// noKey checks that a text has no private key in it, in any encoding.
func noKey(t *testing.T, text string, svids ...*spiffetest.SVID) {
	t.Helper()
	for _, own := range svids {
		key := own.MarshalKey()
		d, err := own.Key.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range [][]byte{key, d} {
			for _, written := range []string{string(secret), hex.EncodeToString(secret), base64.StdEncoding.EncodeToString(secret)} {
				if strings.Contains(text, written) {
					t.Errorf("the text has a private key:\n%s", text)
				}
			}
		}
	}
}

// TestBundleExpiry checks that the last authority to expire is shown, because an agent leaves the
// earlier ones in the bundle.
func TestBundleExpiry(t *testing.T) {
	domain := spiffetest.NewTrustDomain(t, "prod.internal", until(2*time.Hour))
	for _, left := range []time.Duration{time.Hour, 3 * time.Hour, time.Minute} {
		domain.Others = append(domain.Others, spiffetest.NewTrustDomain(t, "prod.internal", until(left)).Authority)
	}
	s := started(t, spiffetest.StartAgent(t, domain.Issue("/tokend")))
	if got, want := s.expiry("client_ca"), domain.Others[1].NotAfter; !got.Equal(want) {
		t.Errorf("the bundle is good until %v, want %v", got, want)
	}
}

// until changes how long a certificate is valid.
func until(left time.Duration) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.NotAfter = time.Now().Add(left) }
}

// TestNoSVIDYet checks the errors of an agent that gives nothing, and that it is tried again until
// it does.
func TestNoSVIDYet(t *testing.T) {
	domain := spiffetest.NewTrustDomain(t, "prod.internal")
	own := domain.Issue("/tokend")
	for name, tc := range map[string]struct {
		prepare func(*spiffetest.Agent)
		want    error
		said    string
	}{
		"no agent":       {func(*spiffetest.Agent) {}, spiffe.ErrUnreachable, "agent.sock: connect: no such file or directory"},
		"not registered": {func(a *spiffetest.Agent) { a.Start() }, spiffe.ErrNotRegistered, "no identity issued"},
		"silent":         {func(a *spiffetest.Agent) { a.BeSilent(); a.Start() }, spiffe.ErrNoAnswer, ""},
		"other service":  {func(a *spiffetest.Agent) { a.Fail(codes.Unimplemented, "unknown service"); a.Start() }, spiffe.ErrNoAgent, "unknown service"},
		"out of order":   {func(a *spiffetest.Agent) { a.Fail(codes.Internal, "datastore"); a.Start() }, spiffe.ErrFailed, "Internal: datastore"},
		"cancels":        {func(a *spiffetest.Agent) { a.Fail(codes.Canceled, "closing"); a.Start() }, spiffe.ErrFailed, "Canceled: closing"},
		"no SVID":        {func(a *spiffetest.Agent) { a.Give(); a.Start() }, spiffe.ErrUnusable, "no SVIDs in response"},
		"for clients": {func(a *spiffetest.Agent) {
			a.Give(domain.Issue("/x", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }))
			a.Start()
		}, spiffe.ErrUnusable, "lacks serverAuth"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			agent := spiffetest.NewAgent(t)
			tc.prepare(agent)
			if tc.said != "" {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				if _, err := spiffe.Fetch(ctx, agent.Addr()); !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.said) {
					t.Errorf("asked once: %v, want %v", err, tc.want)
				}
			}
			s := run(t, agent.Addr())
			if tc.said != "" {
				s.eventually("it is logged", func() bool { return strings.Contains(s.logged(), tc.said) })
			}
			s.await(500*time.Millisecond, tc.want)
			if tc.said != "" {
				s.wantLogged(1, `level=WARN msg="there is no X.509-SVID yet, trying again"`)
			}
			agent.Give(own)
			if name == "no agent" {
				agent.Start()
			}
			s.await(patience, nil)
			if !s.has(own) {
				t.Error("another SVID is in use")
			}
		})
	}
}

// TestAgentLeaves checks that without the agent the last SVID stays in use and is reported, and
// that the next one is used when the agent is back.
func TestAgentLeaves(t *testing.T) {
	domain := spiffetest.NewTrustDomain(t, "prod.internal")
	own := domain.Issue("/tokend", until(10*time.Minute))
	agent := spiffetest.StartAgent(t, own)
	s := started(t, agent)
	for _, leave := range []func(){agent.Stop, func() { agent.Fail(codes.PermissionDenied, "no identity issued") }, func() { agent.Fail(codes.Canceled, "closing") }} {
		leave()
		s.eventually("it is reported", func() bool { return s.files.Check() != nil && !s.okay() })
		if !s.has(own) || !strings.Contains(s.files.Check().Error(), "certificate server: the replacement cannot be used, the last good one stays and is valid until "+own.Cert.NotAfter.UTC().Format(time.RFC3339)+": the SPIFFE agent ") {
			t.Errorf("reported is %v", s.files.Check())
		}
		if errors.Is(s.files.Check(), spiffe.ErrUnreachable) {
			agent.Start()
		}
		own = domain.Issue("/tokend", until(10*time.Minute))
		agent.Give(own)
		s.eventually("the next is in use", func() bool { return s.has(own) && s.files.Check() == nil && s.okay() })
	}
	short := domain.Issue("/tokend", until(3*time.Second))
	agent.Give(short)
	s.eventually("the short one is in use", func() bool { return s.has(short) })
	agent.Stop()
	s.eventually("it is reported, with the reason", func() bool { // one may come before the other
		err := s.files.Check()
		return errors.Is(err, spiffe.ErrUnreachable) && strings.Contains(err.Error(), "certificate server: the one in use expired at ")
	})
}

// TestCheckClient checks that a client certificate has to be an X.509-SVID of the server's trust
// domain, even if an authority of the domain has signed it.
func TestCheckClient(t *testing.T) {
	domain, other := spiffetest.NewTrustDomain(t, "prod.internal"), spiffetest.NewTrustDomain(t, "partner.example")
	agent := spiffetest.NewAgent(t)
	agent.GiveFederated([]*spiffetest.TrustDomain{other}, domain.Issue("/tokend"))
	agent.Start()
	s := started(t, agent)
	name := func(domain string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.URIs[0].Host = domain }
	}
	for what, tc := range map[string]struct {
		cert *spiffetest.SVID
		good bool
	}{
		"own":                                 {domain.Issue("/web"), true},
		"federated":                           {other.Issue("/web"), false},
		"stranger":                            {spiffetest.NewTrustDomain(t, "prod.internal").Issue("/web"), false},
		"signed by our authority for another": {domain.Issue("/web", name("partner.example")), false},
		"signed by another for us":            {other.Issue("/web", name("prod.internal")), false},
		"no SPIFFE ID":                        {domain.Issue("/web", func(c *x509.Certificate) { c.URIs = nil }), false},
		"two SPIFFE IDs":                      {domain.Issue("/web", func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }), false},
		"an authority":                        {domain.Issue("/web", func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), false},
		"may sign":                            {domain.Issue("/web", func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }), false},
		"expired":                             {domain.Issue("/web", until(-time.Second)), false},
	} {
		if err := s.CheckClient([]*x509.Certificate{tc.cert.Cert}); (err == nil) != tc.good {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestFault80ExpiredSVID checks that an expired SVID does not replace a valid one.
func TestFault80ExpiredSVID(t *testing.T) {
	domain := spiffetest.NewTrustDomain(t, "prod.internal")
	own := domain.Issue("/tokend")
	agent := spiffetest.StartAgent(t, own)
	s := started(t, agent)
	agent.Give(domain.Issue("/tokend", until(-time.Second)))
	s.eventually("it is reported", func() bool { return s.files.Check() != nil && !s.okay() })
	if !s.has(own) || !strings.Contains(s.files.Check().Error(), "and the one in use is valid") {
		t.Errorf("the SVID in use is the valid one: %v; reported is %v", s.has(own), s.files.Check())
	}
}
