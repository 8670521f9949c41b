package server

import (
	"errors"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/ForstaLabs/ephemeral-token-service/internal/call"
	"github.com/ForstaLabs/ephemeral-token-service/internal/listen"
)

// registerMetrics registers the server's metrics and those of the Go runtime and the process. No
// label may have a value that a caller or Atlas chooses: it could be a secret, and the number of
// series would be unbounded.
func registerMetrics(registry *prometheus.Registry, own ...prometheus.Collector) error {
	errs := []error{
		// Without runtime.MemStats: in OpenMetrics its go_memstats_alloc_bytes and
		// go_memstats_alloc_bytes_total are one family of two types, which parsers reject. The
		// runtime metrics have the same figures.
		registry.Register(collectors.NewGoCollector(
			collectors.WithGoCollectorMemStatsMetricsDisabled(),
			collectors.WithGoCollectorRuntimeMetrics(collectors.MetricsMemory, collectors.MetricsGC),
		)),
		registry.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})),
	}
	for _, collector := range own {
		errs = append(errs, registry.Register(collector))
	}
	return errors.Join(errs...)
}

// newRefusedCalls returns a counter of calls that exceed a limit, by limit.
func newRefusedCalls() *prometheus.CounterVec {
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tokend_calls_refused_total",
		Help: "Calls refused with OVERLOADED, by the limit that they exceed.",
	}, []string{"limit"})
	for _, limit := range append(call.Limits[:], requestsLimit, standingLimit) {
		refused.WithLabelValues(limit)
	}
	return refused
}

// maxCallsMetric returns a gauge of how many calls may be in progress.
func maxCallsMetric(maxCalls int64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tokend_calls_in_flight_limit", Help: "How many calls may be in progress, over all transports.",
	}, func() float64 { return float64(maxCalls) })
}

// registerRequests registers gauges of the requests that wait for their clients and of the streams
// of health and reflection.
func registerRequests(registry *prometheus.Registry, requests *listen.Requests, guard *streams) error {
	gauge := func(name, help string, value func() float64) error {
		return registry.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	return errors.Join(
		gauge("tokend_requests_waiting", "Requests that wait for their clients: for the rest of a message, or to read the answer. One of more than 16 KiB counts several times.",
			func() float64 { return float64(requests.Waiting()) }),
		gauge("tokend_requests_waiting_limit", "How many requests may wait for their clients.",
			func() float64 { return float64(requests.Limit()) }),
		gauge("tokend_streams_open", "Streams of health and reflection that are open.",
			func() float64 { return float64(guard.standing.Load()) }),
		gauge("tokend_streams_open_limit", "How many streams of health and reflection may be open.",
			func() float64 { return maxStanding }),
	)
}

// metric returns a gauge of whether the server is ready.
func (r *readiness) metric() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tokend_ready", Help: "1 if /readyz answers 200.",
	}, func() float64 { return oneIf(r.get() == stateReady) })
}

// metricsHandler serves OpenMetrics too, which exemplars need.
func metricsHandler(registry *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
}
