package server_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// TestMetrics: /metrics has what the program registers beside the server's own, and is on the admin listener only.
func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	early := prometheus.NewCounter(prometheus.CounterOpts{Name: "early_total", Help: "Registered before the server is made."})
	registry.MustRegister(early)
	s := startService(t, plaintext, func(c *server.Config, _ *atlas.Config) { c.Metrics = registry })
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "late", Help: "Registered after."}, func() float64 { return 7 }))
	early.Add(3)
	code, body := s.get(t, "/metrics")
	if code != http.StatusOK {
		t.Fatalf("/metrics: %d %q", code, body)
	}
	for _, want := range []string{"\nearly_total 3\n", "\nlate 7\n", "\ngo_goroutines ", "\nprocess_start_time_seconds "} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in\n%s", want, body)
		}
	}
	if strings.Contains(body, "tokend_certificate") {
		t.Error("it tells of certificates, and there are none")
	}
	wantNoRoute.check(t, s.restCaller(t).do(testContext(t), http.MethodGet, "/metrics", nil))

	if srv, err := server.New(server.Config{HTTPAddr: "127.0.0.1:0", Atlas: &atlas.Client{}, Metrics: registry}); err == nil {
		srv.Close()
		t.Error("two servers share a registry: the second would not be seen")
	}
}
