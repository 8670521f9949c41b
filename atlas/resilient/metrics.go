package resilient

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// metrics are the metrics of a Client.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newMetrics(registerer prometheus.Registerer, c *Client) *metrics {
	auto := promauto.With(registerer)
	gauge := func(name, help string, value func(Stats) float64) {
		auto.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return value(c.Stats()) })
	}
	counter := func(name, help string, value func(Stats) uint64) {
		auto.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(value(c.Stats())) })
	}
	gauge("tokend_atlas_breaker_open", "1 while the circuit breaker is open: calls fail fast, and tokend probes Atlas once a second.", func(s Stats) float64 {
		if s.Open {
			return 1
		}
		return 0
	})
	gauge("tokend_atlas_in_flight", "Creates and deletes at Atlas.", func(s Stats) float64 { return float64(s.InFlight) })
	gauge("tokend_atlas_in_flight_limit", "How many creates and deletes may be at Atlas; one tenant may have half.", func(s Stats) float64 { return float64(s.Limit) })
	gauge("tokend_atlas_waiting", "Creates and deletes that wait to be sent to Atlas.", func(s Stats) float64 { return float64(s.Waiting) })
	counter("tokend_atlas_shed_total", "Creates and deletes refused because their tenant had too many at Atlas and waiting.", func(s Stats) uint64 { return s.Refused })
	counter("tokend_atlas_retries_total", "Requests to Atlas that were retries.", func(s Stats) uint64 { return s.Retries })
	counter("tokend_atlas_retries_denied_total", "Retries that were not made because the budget was used up.", func(s Stats) uint64 { return s.OutOfBudget })

	m := &metrics{
		requests: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "tokend_atlas_requests_total",
			Help: "Requests to Atlas that have ended, retries and probes included, by outcome: refused is a 4xx other than 429, which is rate_limited; server_error is 5xx; canceled means that no caller waited any longer.",
		}, []string{"operation", "outcome"}),
		seconds: auto.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tokend_atlas_request_duration_seconds", Help: "Duration of requests to Atlas, whatever their outcome.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"operation"}),
	}
	for _, op := range []atlas.Operation{atlas.OpCreate, atlas.OpDelete, atlas.OpLogIn, atlas.OpRefresh, atlas.OpProbe} {
		m.seconds.WithLabelValues(string(op))
		for _, outcome := range outcomes {
			m.requests.WithLabelValues(string(op), outcome)
		}
	}
	return m
}

// request notes how a request to Atlas ended.
func (m *metrics) request(op atlas.Operation, err error, took time.Duration) {
	m.requests.WithLabelValues(string(op), outcomeOf(err)).Inc()
	m.seconds.WithLabelValues(string(op)).Observe(took.Seconds())
}

// outcomes are all that outcomeOf returns.
var outcomes = []string{
	"ok", "refused", "rate_limited", "server_error", "unreachable", "timeout", "tls", "redirect", "invalid_response", "canceled", "not_sent", "other",
}

// kindOutcomes are the outcomes of the kinds of error in which no status says more.
var kindOutcomes = map[atlas.Kind]string{
	atlas.KindUnreachable: "unreachable", atlas.KindTimeout: "timeout", atlas.KindTLS: "tls", atlas.KindRedirect: "redirect",
	atlas.KindInvalidResponse: "invalid_response", atlas.KindCanceled: "canceled", atlas.KindInvalidCredential: "not_sent",
}

// outcomeOf returns the value of the label outcome for the error of a request.
func outcomeOf(err error) string {
	if err == nil {
		return "ok"
	}
	e, ok := errors.AsType[*atlas.Error](err)
	switch {
	case !ok:
		return "other"
	case kindOutcomes[e.Kind] != "":
		return kindOutcomes[e.Kind]
	case e.Kind != atlas.KindStatus:
		return "other"
	}
	switch atlas.Classify(err) {
	case atlas.ClassOutage:
		return "server_error"
	case atlas.ClassThrottled:
		return "rate_limited"
	}
	return "refused"
}
