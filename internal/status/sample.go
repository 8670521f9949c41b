package status

import (
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// sample has the counters that the plots need, at one time.
type sample struct {
	at       time.Time
	calls    float64
	failures map[string]float64 // by reason
	free     float64            // creates without an Atlas call of their own
	creates  float64
	atlas    histogram // durations of creates at Atlas
}

// histogram is cumulative, as in Prometheus.
type histogram struct {
	count   float64
	buckets []bucket
}

// bucket counts the observations of at most upper seconds.
type bucket struct{ upper, count float64 }

// read takes a sample. A missing metric counts as zero.
func read(metrics prometheus.Gatherer, now time.Time) sample {
	s := sample{at: now, failures: map[string]float64{}}
	families, _ := metrics.Gather() // a collector that fails leaves out only its own metrics
	for _, family := range families {
		for _, m := range family.GetMetric() {
			switch family.GetName() {
			case "grpc_server_handled_total":
				s.calls += m.GetCounter().GetValue()
			case "tokend_calls_failed_total":
				s.failures[label(m, "reason")] += m.GetCounter().GetValue()
			case "tokend_cache_creates_total":
				s.creates += m.GetCounter().GetValue()
				if label(m, "answered") != "miss" {
					s.free += m.GetCounter().GetValue()
				}
			case "tokend_atlas_request_duration_seconds":
				if label(m, "operation") == "create" {
					s.atlas = histogramOf(m.GetHistogram())
				}
			}
		}
	}
	return s
}

func histogramOf(h *dto.Histogram) histogram {
	out := histogram{count: float64(h.GetSampleCount())}
	for _, b := range h.GetBucket() {
		out.buckets = append(out.buckets, bucket{b.GetUpperBound(), float64(b.GetCumulativeCount())})
	}
	return out
}

// quantile returns the upper bound, in seconds, of the bucket with the quantile of the observations
// since before, or NaN if there are none.
func (h histogram) quantile(q float64, before histogram) float64 {
	total := h.count - before.count
	if total <= 0 {
		return math.NaN()
	}
	for i, b := range h.buckets {
		earlier := 0.0
		if i < len(before.buckets) {
			earlier = before.buckets[i].count
		}
		if b.count-earlier >= q*total {
			return b.upper
		}
	}
	return math.Inf(1)
}

// label returns the value of a metric's label.
func label(m *dto.Metric, name string) string {
	for _, pair := range m.GetLabel() {
		if pair.GetName() == name {
			return pair.GetValue()
		}
	}
	return ""
}
