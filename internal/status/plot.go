package status

import (
	"fmt"
	"math"
	"strings"
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
