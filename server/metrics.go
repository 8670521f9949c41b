package server

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/call"
)

// registerMetrics registers the metrics of the Go runtime, of the process and of the log. No label
// may have a value that a caller or Atlas chooses: it could be a secret, and the number of series
// would be unbounded.
func registerMetrics(registry *prometheus.Registry, suppressed prometheus.Collector) {
	// Without runtime.MemStats: in OpenMetrics its go_memstats_alloc_bytes and
	// go_memstats_alloc_bytes_total are one family of two types, which parsers reject. The runtime
	// metrics have the same figures.
	registry.MustRegister(collectors.NewGoCollector(
		collectors.WithGoCollectorMemStatsMetricsDisabled(),
		collectors.WithGoCollectorRuntimeMetrics(collectors.MetricsMemory, collectors.MetricsGC),
	))
	registry.MustRegister(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	registry.MustRegister(suppressed)
}

// newRefusedCalls returns a function that counts a call that exceeds a limit, by limit.
func newRefusedCalls(registry *prometheus.Registry) func(limit string) {
	refused := promauto.With(registry).NewCounterVec(prometheus.CounterOpts{
		Name: "tokend_calls_refused_total",
		Help: "Calls refused with OVERLOADED, by the limit that they exceed.",
	}, []string{"limit"})
	for _, limit := range append(call.Limits[:], requestsLimit, standingLimit) {
		refused.WithLabelValues(limit)
	}
	return func(limit string) { refused.WithLabelValues(limit).Inc() }
}

// registerGauges registers gauges of the server's state and of its limits.
func (s *Server) registerGauges(guard *streams) {
	gauge := func(name, help string, value func() float64) {
		promauto.With(s.cfg.Metrics).NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	gauge("tokend_ready", "1 if /readyz answers 200.",
		func() float64 { return oneIf(s.ready.get() == stateReady) })
	gauge("tokend_calls_in_flight_limit", "How many calls may be in progress, over all transports.",
		func() float64 { return float64(s.cfg.MaxCalls) })
	gauge("tokend_requests_waiting", "Requests that wait for their clients: for the rest of a message, or to read the answer. One of more than 16 KiB counts several times.",
		func() float64 { return float64(s.requests.Waiting()) })
	gauge("tokend_requests_waiting_limit", "How many requests may wait for their clients.",
		func() float64 { return float64(s.requests.Limit()) })
	gauge("tokend_streams_open", "Streams of health and reflection that are open.",
		func() float64 { return float64(guard.standing.Load()) })
	gauge("tokend_streams_open_limit", "How many streams of health and reflection may be open.",
		func() float64 { return maxStanding })
}

// metricsHandler serves OpenMetrics too, which exemplars need.
func metricsHandler(registry *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
}

var (
	identityValid = prometheus.NewDesc("tokend_identity_valid",
		"1 if the profile has a valid Atlas JWT.", []string{"profile"}, nil)
	identityRefused = prometheus.NewDesc("tokend_identity_refused",
		"1 while Atlas refuses the profile's userauthtoken or its JWTs.", []string{"profile"}, nil)
	identityIssued = prometheus.NewDesc("tokend_identity_issued_timestamp_seconds",
		"When the JWT was issued, in Unix seconds.", []string{"profile"}, nil)
	identityExpiry = prometheus.NewDesc("tokend_identity_expiry_timestamp_seconds",
		"When the JWT is no longer used, in Unix seconds.", []string{"profile"}, nil)
	identityNext = prometheus.NewDesc("tokend_identity_next_renewal_timestamp_seconds",
		"When the next login or refresh is due, in Unix seconds.", []string{"profile"}, nil)
	identityFailed = prometheus.NewDesc("tokend_identity_last_failure_timestamp_seconds",
		"When a login or refresh last failed, in Unix seconds.", []string{"profile"}, nil)
	issuerUp = prometheus.NewDesc("tokend_oidc_issuer_up",
		"1 if the last request for the OIDC issuer's keys succeeded.", []string{"issuer"}, nil)
	issuerKeys = prometheus.NewDesc("tokend_oidc_issuer_keys_timestamp_seconds",
		"When the OIDC issuer's keys in use were fetched, in Unix seconds.", []string{"issuer"}, nil)
)

// identityMetrics collects the state of the profiles and issuers that the current policy names.
// Unknown times have no series.
type identityMetrics struct{ auth *auth.Authenticator }

// Describe implements prometheus.Collector.
func (identityMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{
		identityValid, identityRefused, identityIssued, identityExpiry, identityNext, identityFailed, issuerUp, issuerKeys,
	} {
		ch <- desc
	}
}

// Collect implements prometheus.Collector.
func (m identityMetrics) Collect(ch chan<- prometheus.Metric) {
	for profile, status := range m.auth.Profiles() {
		ch <- prometheus.MustNewConstMetric(identityValid, prometheus.GaugeValue, oneIf(status.Valid), profile)
		ch <- prometheus.MustNewConstMetric(identityRefused, prometheus.GaugeValue, oneIf(status.Refused), profile)
		collectTime(ch, identityIssued, status.Issued, profile)
		collectTime(ch, identityExpiry, status.Expires, profile)
		collectTime(ch, identityNext, status.NextDue, profile)
		collectTime(ch, identityFailed, status.FailedAt, profile)
	}
	for url, status := range m.auth.Issuers() {
		ch <- prometheus.MustNewConstMetric(issuerUp, prometheus.GaugeValue, oneIf(status.OK), url)
		collectTime(ch, issuerKeys, status.Keys, url)
	}
}

func collectTime(ch chan<- prometheus.Metric, desc *prometheus.Desc, at time.Time, label string) {
	if !at.IsZero() {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(at.UnixMilli())/1000, label)
	}
}

func oneIf(so bool) float64 {
	if so {
		return 1
	}
	return 0
}
