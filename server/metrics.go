package server

import (
	"errors"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/ForstaLabs/ephemeral-token-service/internal/call"
)

// registerMetrics adds the server's own metrics, and those of the Go runtime and the process. No label of any metric may have
// a value that a caller or Atlas chooses: it could be a secret, and there is no end of them.
func registerMetrics(registry *prometheus.Registry, own ...prometheus.Collector) error {
	errs := []error{
		registry.Register(collectors.NewGoCollector()),
		registry.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})),
	}
	for _, collector := range own {
		errs = append(errs, registry.Register(collector))
	}
	return errors.Join(errs...)
}

// newRefusedCalls counts the calls that are beyond a limit, by which.
func newRefusedCalls() *prometheus.CounterVec {
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tokend_calls_refused_total",
		Help: "Calls refused with OVERLOADED: too many in progress, of all callers or of one, or too many of one caller in a second.",
	}, []string{"limit"})
	for _, limit := range call.Limits {
		refused.WithLabelValues(limit)
	}
	return refused
}

// maxCallsMetric is how many calls may be in progress.
func maxCallsMetric(maxCalls int64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tokend_calls_in_flight_limit", Help: "How many calls may be in progress, over all transports.",
	}, func() float64 { return float64(maxCalls) })
}

// metric is whether calls should be sent here.
func (r *readiness) metric() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tokend_ready", Help: "1 if /readyz answers 200.",
	}, func() float64 { return oneIf(r.get() == stateReady) })
}

func metricsHandler(registry *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true}) // which exemplars need
}
