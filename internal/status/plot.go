package status

import (
	"fmt"
	"math"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
)

// The size of a plot, in units of its viewBox.
const (
	plotWidth  = 300
	plotHeight = 60
)

// plot is one line over the last hour.
type plot struct {
	Title  string
	Latest string // the newest value, with its unit
	Most   string // the value at the top
	Line   string // points of an SVG polyline; empty if there is nothing to show
}

// plots returns the plots of the page.
func plots(samples []sample) []plot {
	rate := func(of func(sample) float64) func(before, after sample) float64 {
		return func(before, after sample) float64 {
			seconds := after.at.Sub(before.at).Seconds()
			if seconds < 1 {
				return math.NaN()
			}
			return (of(after) - of(before)) / seconds
		}
	}
	return []plot{
		newPlot("Calls", "/s", samples, rate(func(s sample) float64 { return s.calls })),
		newPlot("Failed calls", "/s", samples, rate(func(s sample) float64 { return sum(s.failures) })),
		newPlot("Atlas latency, p90", " ms", samples, func(before, after sample) float64 {
			return after.atlas.quantile(0.9, before.atlas) * 1000
		}),
		newPlot("Creates that cost Atlas nothing", " %", samples, func(before, after sample) float64 {
			return 100 * (after.free - before.free) / (after.creates - before.creates)
		}),
	}
}

// newPlot plots value over consecutive samples. NaN and infinite values are left out.
func newPlot(title, unit string, samples []sample, value func(before, after sample) float64) plot {
	p := plot{Title: title, Latest: "no data"}
	type point struct{ x, y float64 }
	var points []point
	most := 0.0
	end := samples[len(samples)-1].at
	for i, after := range samples[1:] {
		y := value(samples[i], after)
		if math.IsNaN(y) || math.IsInf(y, 0) {
			continue
		}
		age := end.Sub(after.at).Seconds() / (float64(maxSamples-1) * sampleInterval.Seconds())
		points = append(points, point{plotWidth * (1 - age), y})
		most = math.Max(most, y)
		p.Latest = short(y) + unit
	}
	if most == 0 {
		most = 1
	}
	p.Most = short(most) + unit
	var line strings.Builder
	for _, at := range points {
		fmt.Fprintf(&line, "%.1f,%.1f ", at.x, plotHeight*(1-at.y/most))
	}
	if len(points) == 1 { // a line needs two ends
		fmt.Fprintf(&line, "%.1f,%.1f", points[0].x-1, plotHeight*(1-points[0].y/most))
	}
	p.Line = strings.TrimSpace(line.String())
	return p
}

// short formats a number with about three digits.
func short(y float64) string {
	if y >= 100 {
		return fmt.Sprintf("%.0f", y)
	}
	return fmt.Sprintf("%.3g", y)
}

func sum(counts map[string]float64) (total float64) {
	for _, n := range counts {
		total += n
	}
	return total
}

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
func read(families []*dto.MetricFamily, now time.Time) sample {
	s := sample{at: now, failures: map[string]float64{}}
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
