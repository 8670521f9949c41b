package status

import (
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// testMetrics are those that the page reads, under the names that the service gives them.
type testMetrics struct {
	*prometheus.Registry
	calls, failed, creates *prometheus.CounterVec
	atlas                  *prometheus.HistogramVec
}

func newTestMetrics() testMetrics {
	m := testMetrics{
		Registry: prometheus.NewRegistry(),
		calls:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "grpc_server_handled_total"}, []string{"grpc_code"}),
		failed:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tokend_calls_failed_total"}, []string{"reason", "transport"}),
		creates:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tokend_cache_creates_total"}, []string{"answered"}),
		atlas: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tokend_atlas_request_duration_seconds", Buckets: []float64{0.1, 1},
		}, []string{"operation"}),
	}
	m.MustRegister(m.calls, m.failed, m.creates, m.atlas)
	return m
}

func (m testMetrics) gauge(name string, value float64, labels prometheus.Labels) {
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, ConstLabels: labels})
	g.Set(value)
	m.MustRegister(g)
}

func newTestPage(m testMetrics, checks ...Check) *Page {
	return New(Config{
		Version: "v1.2.3", Metrics: m,
		State:    func() string { return "ready" },
		Checks:   func() []Check { return checks },
		Settings: []Setting{{"--atlas-url", "https://atlas.example/v1", "flag"}},
	})
}

func get(t *testing.T, p *Page) string {
	t.Helper()
	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if w.Code != 200 {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func wantOnPage(t *testing.T, page string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(page, text) {
			t.Errorf("the page lacks %q", text)
		}
	}
}

// TestPage checks that the page shows each kind of fact and escapes texts.
func TestPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newTestMetrics()
		unix := func(d time.Duration) float64 { return float64(time.Now().Add(d).Unix()) }
		m.gauge("tokend_atlas_breaker_open", 1, nil)
		m.gauge("tokend_identity_valid", 1, prometheus.Labels{"profile": "acme"})
		m.gauge("tokend_identity_next_renewal_timestamp_seconds", unix(25*time.Minute), prometheus.Labels{"profile": "acme"})
		m.gauge("tokend_certificate_expiry_timestamp_seconds", unix(12*24*time.Hour+time.Hour), prometheus.Labels{"certificate": "server.pem"})
		p := newTestPage(m,
			Check{Name: "Atlas", Err: errors.New("Atlas: <script>alert(1)</script>"), Since: time.Now().Add(-3 * time.Minute)})
		page := get(t, p)
		wantOnPage(t, page, "v1.2.3", "&lt;script&gt;", "for 3 min", "open: calls fail fast", "next renewal in 25 min",
			"expires in 12 days", "--atlas-url", "https://atlas.example/v1", "no data")
		if strings.Contains(page, "<script") || strings.Contains(page, "NaN") {
			t.Errorf("the page has a script or NaN:\n%s", page)
		}
	})
}

// TestPlots checks the figures of each plot after two minutes, and the failures by reason.
func TestPlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newTestMetrics()
		m.calls.WithLabelValues("OK").Add(1000) // before the page began
		p := newTestPage(m)
		go func() { _ = p.Run(t.Context()) }()
		time.Sleep(sampleInterval) //nolint:forbidigo // virtual time
		synctest.Wait()
		m.calls.WithLabelValues("OK").Add(90)
		m.calls.WithLabelValues("Unavailable").Add(30)
		m.failed.WithLabelValues("ATLAS_TIMEOUT", "grpc").Add(18)
		m.failed.WithLabelValues("ATLAS_TIMEOUT", "rest").Add(12)
		m.creates.WithLabelValues("hit").Add(75)
		m.creates.WithLabelValues("miss").Add(25)
		for range 20 {
			m.atlas.WithLabelValues("create").Observe(0.5)
			m.atlas.WithLabelValues("delete").Observe(5)
		}
		time.Sleep(sampleInterval) //nolint:forbidigo // virtual time
		synctest.Wait()
		page := get(t, p)
		wantOnPage(t, page, "<span>2/s</span>", "<span>0.5/s</span>", "<span>500 ms</span>", "<span>75 %</span>",
			`ATLAS_TIMEOUT</th><td class="">30</td>`, "<polyline")
	})
}

// TestHistoryIsAnHour checks that a page keeps the samples of an hour and no more.
func TestHistoryIsAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newTestMetrics()
		m.failed.WithLabelValues("OVERLOADED", "grpc").Add(7)
		p := newTestPage(m)
		go func() { _ = p.Run(t.Context()) }()
		time.Sleep(30 * time.Minute) //nolint:forbidigo // virtual time
		m.failed.WithLabelValues("OVERLOADED", "grpc").Add(1)
		wantOnPage(t, get(t, p), `OVERLOADED</th><td class="">1</td>`)
		time.Sleep(3 * time.Hour) //nolint:forbidigo // virtual time
		synctest.Wait()
		if len(p.samples) != maxSamples {
			t.Errorf("%d samples, want %d", len(p.samples), maxSamples)
		}
		if page := get(t, p); strings.Contains(page, "OVERLOADED") {
			t.Errorf("a failure of an earlier hour is on the page:\n%s", page)
		}
	})
}
