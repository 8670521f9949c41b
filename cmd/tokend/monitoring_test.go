//go:build unix

package main_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth/authtest"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/testcert"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
)

const (
	rulesFile     = repository + "/deploy/helm/tokend/rules.yaml"
	dashboardFile = repository + "/deploy/helm/tokend/dashboard.json"
	operatingFile = repository + "/deploy/operating.md"
)

// alert is one of the rules.
type alert struct {
	Alert       string
	Expr        string
	Labels      map[string]string
	Annotations map[string]string
}

func readAlerts(t *testing.T) []alert {
	t.Helper()
	var file struct {
		Groups []struct{ Rules []alert }
	}
	if err := yaml.Unmarshal([]byte(readFile(t, rulesFile)), &file); err != nil {
		t.Fatal(err)
	}
	var all []alert
	for _, group := range file.Groups {
		all = append(all, group.Rules...)
	}
	if len(all) == 0 {
		t.Fatal("there are no alerts")
	}
	return all
}

var (
	reasonMatcher = regexp.MustCompile(`reason=~?"([^"]+)"`)
	heading       = regexp.MustCompile(`(?m)^#+ (.+)$`)
)

// TestAlerts checks that each alert has a severity, a summary, a runbook that exists, and tests
// that promtool passes.
func TestAlerts(t *testing.T) {
	t.Parallel()
	page := readFile(t, operatingFile)
	var headings []string
	for _, match := range heading.FindAllStringSubmatch(page, -1) {
		headings = append(headings, strings.ToLower(strings.ReplaceAll(match[1], " ", "-")))
	}
	tests := readFile(t, repository+"/deploy/alerts_test.yaml")
	for _, a := range readAlerts(t) {
		if severity := a.Labels["severity"]; severity != "critical" && severity != "warning" {
			t.Errorf("%s: severity %q", a.Alert, severity)
		}
		_, anchor, _ := strings.Cut(a.Annotations["runbook_url"], "/blob/main/deploy/operating.md#")
		if !slices.Contains(headings, anchor) {
			t.Errorf("%s: there is no heading for #%s in deploy/operating.md", a.Alert, anchor)
		}
		if a.Annotations["summary"] == "" {
			t.Errorf("%s has no summary", a.Alert)
		}
		for _, name := range []string{a.Alert + " fires", a.Alert + " does not fire"} {
			if !strings.Contains(tests, "name: "+name+"\n") {
				t.Errorf("deploy/alerts_test.yaml has no test that %s", name)
			}
		}
	}
	requireTool(t, "promtool", "prometheus")
	for _, args := range [][]string{{"check", "rules", "deploy/helm/tokend/rules.yaml"}, {"test", "rules", "deploy/alerts_test.yaml"}} {
		if got := command(t, "promtool", args...); got.code != 0 {
			t.Errorf("promtool %q: %d\n%s%s", args, got.code, got.stdout, got.stderr)
		}
	}
}

// panel is one of a dashboard's.
type panel struct {
	ID         int
	Title      string
	Type       string
	GridPos    struct{ X, Y, W, H int }
	DataSource dataSource
	Targets    []struct {
		RefID      string
		Expr       string
		DataSource dataSource
	}
	Links  []struct{ URL string }
	Panels []panel // of a folded row
}

type dataSource struct{ UID string }

// overlaps reports whether two panels of one grid overlap.
func (p panel) overlaps(other panel) bool {
	a, b := p.GridPos, other.GridPos
	return a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H
}

// dashboardPanels returns the dashboard's panels, in which those of folded rows are nested.
func dashboardPanels(t *testing.T) []panel {
	t.Helper()
	var dashboard struct{ Panels []panel }
	if err := json.Unmarshal([]byte(readFile(t, dashboardFile)), &dashboard); err != nil {
		t.Fatal(err)
	}
	if len(dashboard.Panels) == 0 {
		t.Fatal("there are no panels")
	}
	return dashboard.Panels
}

// readPanels returns all panels of the dashboard.
func readPanels(t *testing.T) []panel {
	t.Helper()
	var all []panel
	for _, p := range dashboardPanels(t) {
		all = append(append(all, p), p.Panels...)
	}
	return all
}

// TestDashboard checks what Grafana would show wrongly: ids that are not unique, panels that
// overlap, and another data source than the chosen one. It also checks that the headings that the
// dashboard links to exist.
func TestDashboard(t *testing.T) {
	t.Parallel()
	page := "\n" + strings.ToLower(readFile(t, operatingFile)) + "\n"
	ids := map[int]bool{}
	var checkGrid func(grid []panel)
	checkGrid = func(grid []panel) {
		for i, p := range grid {
			if ids[p.ID] || p.GridPos.X+p.GridPos.W > 24 || slices.ContainsFunc(grid[:i], p.overlaps) {
				t.Errorf("%q has the id of another panel, overlaps one or is too wide: %+v", p.Title, p.GridPos)
			}
			ids[p.ID] = true
			checkGrid(p.Panels)
		}
	}
	checkGrid(dashboardPanels(t))
	for _, p := range readPanels(t) {
		refs := map[string]bool{}
		for _, target := range p.Targets {
			if refs[target.RefID] || target.DataSource != p.DataSource || p.DataSource.UID != "${datasource}" {
				t.Errorf("%q: query %s has the name of another or its own data source", p.Title, target.RefID)
			}
			refs[target.RefID] = true
		}
		for _, link := range p.Links {
			_, anchor, _ := strings.Cut(link.URL, "/blob/main/deploy/operating.md#")
			if anchor == "" || !strings.Contains(page, "\n### "+anchor+"\n") {
				t.Errorf("%q links to %s, which is not there", p.Title, link.URL)
			}
		}
	}
}

// TestMonitoring has Prometheus scrape a service with all features on: the queries of alerts and
// dashboard are valid, those of the dashboard have data, promtool accepts the names of the metrics,
// and each is documented.
func TestMonitoring(t *testing.T) {
	t.Parallel()
	requireTool(t, "prometheus", "prometheus")
	requireTool(t, "promtool", "prometheus")
	m := startMonitored(t)
	p := startPrometheus(t, m.admin, rulesFile)
	stop := m.startTraffic(t)
	defer stop()

	for _, panel := range readPanels(t) {
		for _, target := range panel.Targets {
			expr := strings.NewReplacer("$__rate_interval", "30s", "$job", ".*", "$namespace", ".*", "$instance", ".*").Replace(target.Expr)
			var err error
			poll(t, fmt.Sprintf("data for %q: %s", panel.Title, expr), func() bool {
				var values []float64
				values, err = p.query(t, expr)
				return err != nil || len(values) > 0
			})
			if err != nil {
				t.Errorf("%q: %s: %v", panel.Title, expr, err)
			}
		}
	}
	for _, a := range readAlerts(t) {
		if _, err := p.query(t, a.Expr); err != nil {
			t.Errorf("%s: %v", a.Alert, err)
		}
	}
	p.wantRulesHealthy(t)
	m.wantExemplar(t, p)
	m.wantReasons(t)
	_, metrics, _ := strings.Cut(probe(t, m.admin, "/metrics"), " ")
	wantDocumented(t, metrics)
	check := exec.Command("promtool", "check", "metrics")
	check.Stdin = strings.NewReader(metrics + "\n")
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

// wantRulesHealthy waits until all rules have been evaluated.
func (p *prometheus) wantRulesHealthy(t *testing.T) {
	t.Helper()
	poll(t, "all rules to be healthy", func() bool {
		var answer struct {
			Data struct {
				Groups []struct {
					Rules []struct{ Name, Health, LastError string }
				}
			}
		}
		if err := p.get(t, "/api/v1/rules", &answer); err != nil {
			t.Fatal(err)
		}
		count := 0
		for _, group := range answer.Data.Groups {
			for _, rule := range group.Rules {
				if rule.LastError != "" {
					t.Fatalf("%s: %s", rule.Name, rule.LastError)
				}
				if rule.Health == "ok" {
					count++
				}
			}
		}
		return count == len(readAlerts(t))
	})
}

// wantExemplar finds the trace of the traffic where Prometheus keeps exemplars.
func (m *monitored) wantExemplar(t *testing.T, p *prometheus) {
	t.Helper()
	poll(t, "an exemplar", func() bool {
		var answer json.RawMessage
		now := time.Now()
		if err := p.get(t, fmt.Sprintf("/api/v1/query_exemplars?query=grpc_server_handling_seconds_bucket&start=%d&end=%d", now.Add(-time.Hour).Unix(), now.Unix()+1), &answer); err != nil {
			t.Fatal(err)
		}
		return bytes.Contains(answer, []byte(`"trace_id":"`+monitoredTrace+`"`))
	})
}

// wantReasons checks that each reason which a query names is one that there is.
func (m *monitored) wantReasons(t *testing.T) {
	t.Helper()
	var exprs []string
	for _, a := range readAlerts(t) {
		exprs = append(exprs, a.Expr)
	}
	for _, panel := range readPanels(t) {
		for _, target := range panel.Targets {
			exprs = append(exprs, target.Expr)
		}
	}
	metrics := probe(t, m.admin, "/metrics")
	for _, expr := range exprs {
		for _, match := range reasonMatcher.FindAllStringSubmatch(expr, -1) {
			for reason := range strings.SplitSeq(match[1], "|") {
				if !strings.Contains(metrics, `reason="`+reason+`"`) {
					t.Errorf("there is no reason %s", reason)
				}
			}
		}
	}
}

var (
	metricType  = regexp.MustCompile(`(?m)^# TYPE ((?:tokend|grpc)_\S+)`)
	metricNamed = regexp.MustCompile("`((?:tokend|grpc_server)_[a-z_]+)")
)

// wantDocumented checks that the page has each metric, and no other.
func wantDocumented(t *testing.T, metrics string) {
	t.Helper()
	var there, told []string
	for _, match := range metricType.FindAllStringSubmatch(metrics, -1) {
		there = append(there, match[1])
	}
	for _, match := range metricNamed.FindAllStringSubmatch(readFile(t, operatingFile), -1) {
		told = append(told, match[1])
	}
	for _, name := range there {
		if !slices.Contains(told, name) {
			t.Errorf("deploy/operating.md does not tell of %s", name)
		}
	}
	for _, name := range told {
		if !slices.Contains(there, name) {
			t.Errorf("deploy/operating.md tells of %s, which is not there", name)
		}
	}
}

// monitored is a service with everything on that has metrics.
type monitored struct {
	*service
	certs  certificates
	client *http.Client
	rpc    ephemeraltokenv1.EphemeralTokenServiceClient
}

const monitoredTrace = "0af7651916cd43dd8448eb211c80319c"

func startMonitored(t *testing.T) *monitored {
	t.Helper()
	certs, em, redis := makeCertificates(t), startAtlas(t), redistest.Start(t)
	issuer, key := authtest.NewIssuer(t), authtest.NewKey(t)
	issuer.Publish(map[string]crypto.Signer{"k": key})
	policy := writeFile(t, "policy.yaml", fmt.Appendf(nil, `
profiles: {acme: {userauthtoken_file: %q}}
callers:
  - {dns_san: web.internal, allow: [CreateToken, DeleteToken], profile: acme}
  - {oidc: {issuer: %q, audience: tokend, subject: "ci-*"}, allow: [CreateToken], profile: acme}
  - {atlas_jwt: true, allow: [CreateToken, DeleteToken], profile: passthrough}
`, writeFile(t, "secret", []byte(em.Org(0).UserAuthToken())), issuer.URL))
	s := invocation{args: certs.flags(
		"--policy-file="+policy, "--audit-file="+filepath.Join(t.TempDir(), "audit.json"), "--cache-ttl=1s", "--cache-redis-url="+redis.URL(),
		"--oidc-ca-file="+writeFile(t, "oidc-ca.pem", testcert.EncodePEM("CERTIFICATE", issuer.Certificate().Raw)),
		"--atlas-cert-file="+certs.clientCert, "--atlas-key-file="+certs.clientKey,
		"--caller-rate=1000", "--max-connections=100", "--debug-pprof",
	)}.startServe(t, em)
	config := &tls.Config{RootCAs: certs.pool, Certificates: []tls.Certificate{certs.client}}
	conn, err := grpc.NewClient("passthrough:///"+s.grpc, grpc.WithTransportCredentials(credentials.NewTLS(config.Clone())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &monitored{service: s, certs: certs, client: newHTTPClient(t, config.Clone()), rpc: ephemeraltokenv1.NewEphemeralTokenServiceClient(conn)}
}

// startTraffic calls over both transports until stop, and has some of that fail.
func (m *monitored) startTraffic(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var traffic sync.WaitGroup
	traffic.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ctx.Err() == nil; n++ {
			m.round(ctx, t, n)
			<-tick.C
		}
	})
	stop = sync.OnceFunc(func() { cancel(); traffic.Wait() })
	t.Cleanup(stop)
	return stop
}

// round makes a few calls. What becomes of them is for the metrics to tell.
func (m *monitored) round(ctx context.Context, t *testing.T, n int) {
	rpc := metadata.AppendToOutgoingContext(ctx, "traceparent", "00-"+monitoredTrace+"-b7ad6b7169203331-01")
	rest := func(method, path string, headers ...string) {
		_, _ = do(m.client, newRequest(t, method, "https://"+m.http+path, "", headers...))
	}
	_, _ = m.rpc.CreateToken(rpc, &ephemeraltokenv1.CreateTokenRequest{})
	rest(http.MethodPost, restPath)
	if n%10 == 0 {
		_, _ = m.rpc.DeleteToken(rpc, &ephemeraltokenv1.DeleteTokenRequest{})
		rest(http.MethodDelete, restPath)
		rest(http.MethodPost, "/v1/planted")
		rest(http.MethodPost, restPath, "Authorization", "JWT "+m.atlas.Org(1).JWT()) // beside a certificate: ambiguous
		if conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", m.http); err == nil {
			_, _ = io.WriteString(conn, "no TLS\r\n\r\n")
			_ = conn.Close()
		}
	}
	if n == 5 {
		m.atlas.Inject(emulator.Fault{On: emulator.Login, Status: http.StatusServiceUnavailable, Times: 1})
	}
	if n%10 == 5 {
		m.atlas.Org(0).RevokeJWTs()
		m.atlas.Inject(emulator.Fault{On: emulator.Create, Status: http.StatusServiceUnavailable, Times: 4})
		rest(http.MethodPost, restPath, "Cache-Control", "no-cache")
	}
}
