package measured

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/resilient"
)

// stat is one metric of a resilient.Client.
type stat struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(resilient.Stats) float64
}

func gauge(name, help string, value func(resilient.Stats) float64) stat {
	return stat{prometheus.NewDesc(name, help, nil, nil), prometheus.GaugeValue, value}
}

func counter(name, help string, value func(resilient.Stats) float64) stat {
	return stat{prometheus.NewDesc(name, help, nil, nil), prometheus.CounterValue, value}
}

var stats = []stat{
	gauge("tokend_atlas_breaker_open", "1 while Atlas is taken to be down, and is asked about once a second only.", func(s resilient.Stats) float64 {
		if s.Open {
			return 1
		}
		return 0
	}),
	gauge("tokend_atlas_in_flight", "Creates and deletes that are at Atlas.", func(s resilient.Stats) float64 { return float64(s.InFlight) }),
	gauge("tokend_atlas_in_flight_limit", "How many creates and deletes may be at Atlas; it follows how fast Atlas answers.", func(s resilient.Stats) float64 { return float64(s.Limit) }),
	gauge("tokend_atlas_waiting", "Creates and deletes that wait to be sent to Atlas.", func(s resilient.Stats) float64 { return float64(s.Waiting) }),
	counter("tokend_atlas_shed_total", "Creates and deletes refused because too many were at Atlas and waited.", func(s resilient.Stats) float64 { return float64(s.Refused) }),
	counter("tokend_atlas_retries_total", "Requests to Atlas that were repeated.", func(s resilient.Stats) float64 { return float64(s.Retries) }),
	counter("tokend_atlas_retries_denied_total", "Requests to Atlas that were not repeated because the budget of repeats was used up.", func(s resilient.Stats) float64 { return float64(s.OutOfBudget) }),
}

// Resilience shows the stats of a resilient.Client. It is to be registered.
type Resilience func() resilient.Stats

// Describe implements prometheus.Collector.
func (Resilience) Describe(ch chan<- *prometheus.Desc) {
	for _, s := range stats {
		ch <- s.desc
	}
}

// Collect implements prometheus.Collector.
func (r Resilience) Collect(ch chan<- prometheus.Metric) {
	now := r()
	for _, s := range stats {
		ch <- prometheus.MustNewConstMetric(s.desc, s.kind, s.value(now))
	}
}
