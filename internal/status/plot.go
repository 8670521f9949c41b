package status

import (
	"cmp"
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
	Top    string // the highest value; empty if there is none above zero
	Line   string // points of an SVG polyline; empty if there is nothing to show
}

// plots returns the plots of the page.
func plots(samples []sample) []plot {
	perSecond := func(before, after sample, n float64) float64 {
		if seconds := after.at.Sub(before.at).Seconds(); seconds >= 1 {
			return n / seconds
		}
		return math.NaN()
	}
	return []plot{
		newPlot("Calls", "/s", samples, func(before, after sample) float64 {
			return perSecond(before, after, after.calls-before.calls)
		}),
		newPlot("Failed calls", "/s", samples, func(before, after sample) float64 {
			return perSecond(before, after, after.failed-before.failed)
		}),
		newPlot("Atlas latency, mean", " ms", samples, func(before, after sample) float64 {
			return 1000 * (after.atlasSeconds - before.atlasSeconds) / (after.atlasCreates - before.atlasCreates)
		}),
		newPlot("Creates without Atlas", " %", samples, func(before, after sample) float64 {
			return 100 * (after.free - before.free) / (after.creates - before.creates)
		}),
	}
}

// newPlot plots value over consecutive samples. NaN and infinite values are left out.
func newPlot(title, unit string, samples []sample, value func(before, after sample) float64) plot {
	p := plot{Title: title, Latest: "no data"}
	values := make([]float64, len(samples)) // the first has none before it, and is left out
	most := 0.0
	for i := 1; i < len(samples); i++ {
		values[i] = value(samples[i-1], samples[i])
		if math.IsInf(values[i], 0) {
			values[i] = math.NaN()
		}
		if !math.IsNaN(values[i]) {
			p.Latest = short(values[i]) + unit
			most = max(most, values[i])
		}
	}
	if most > 0 {
		p.Top = "top: " + short(most) + unit
	}
	var points []string
	for i := 1; i < len(samples); i++ {
		if !math.IsNaN(values[i]) {
			age := samples[len(samples)-1].at.Sub(samples[i].at).Seconds() / ((maxSamples - 1) * sampleInterval).Seconds()
			points = append(points, fmt.Sprintf("%.1f,%.1f", plotWidth*(1-age), plotHeight*(1-values[i]/cmp.Or(most, 1))))
		}
	}
	if len(points) == 1 {
		points = append(points, points[0]) // a line needs two ends
	}
	p.Line = strings.Join(points, " ")
	return p
}

// short formats a number with about three digits.
func short(y float64) string {
	if y >= 100 {
		return fmt.Sprintf("%.0f", y)
	}
	return fmt.Sprintf("%.3g", y)
}
