package status

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// metrics are those of the process at one time, by name.
type metrics map[string][]*dto.Metric

func gather(from prometheus.Gatherer) metrics {
	families, _ := from.Gather() // a collector that fails leaves out only its own
	m := metrics{}
	for _, family := range families {
		m[family.GetName()] = family.GetMetric()
	}
	return m
}

// value returns the value of the metric whose only label has this value, or that has no label if
// labelled is empty.
func (m metrics) value(name, labelled string) (value float64, ok bool) {
	for _, metric := range m[name] {
		labels := metric.GetLabel()
		if len(labels) == 0 && labelled == "" || len(labels) == 1 && labels[0].GetValue() == labelled {
			return valueOf(metric), true
		}
	}
	return 0, false
}

// sum returns the sum of a metric over all labels.
func (m metrics) sum(name string) (total float64) {
	for _, metric := range m[name] {
		total += valueOf(metric)
	}
	return total
}

// valueOf returns the value of a counter or gauge.
func valueOf(metric *dto.Metric) float64 {
	return metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
}

// label returns the value of a metric's label.
func label(metric *dto.Metric, name string) string {
	for _, pair := range metric.GetLabel() {
		if pair.GetName() == name {
			return pair.GetValue()
		}
	}
	return ""
}

// sample has the counters that the plots need, at one time.
type sample struct {
	at       time.Time
	calls    float64
	failed   float64
	failures map[string]float64 // the same by reason
	free     float64            // creates without an Atlas call of their own
	creates  float64
	// Create calls to Atlas, and their total duration.
	atlasCreates, atlasSeconds float64
}

// sample takes a sample. A missing metric counts as zero.
func (m metrics) sample(now time.Time) sample {
	misses, _ := m.value("tokend_cache_creates_total", "miss")
	s := sample{
		at:       now,
		calls:    m.sum("grpc_server_handled_total"),
		failed:   m.sum("tokend_calls_failed_total"),
		failures: map[string]float64{},
		creates:  m.sum("tokend_cache_creates_total"),
	}
	s.free = s.creates - misses
	for _, failed := range m["tokend_calls_failed_total"] {
		s.failures[label(failed, "reason")] += valueOf(failed)
	}
	for _, requests := range m["tokend_atlas_request_duration_seconds"] {
		if label(requests, "operation") == "create" {
			s.atlasCreates += float64(requests.GetHistogram().GetSampleCount())
			s.atlasSeconds += requests.GetHistogram().GetSampleSum()
		}
	}
	return s
}
