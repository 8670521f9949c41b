package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Constants of the scaling. All callers share a credential.
const (
	callsEach    = time.Second           // between two calls of a caller
	scaleLatency = 20 * time.Millisecond // of Atlas
	scaleTTL     = time.Second           // of the cache, if there is one
	// inFlight is the most calls in flight for a credential.
	inFlight = 4
)

// scaling is the rate of calls to Atlas by callers and replicas.
type scaling struct {
	Machine machine      `json:"machine"`
	Points  []scalePoint `json:"points"`
}

// scalePoint is one measurement.
type scalePoint struct {
	Replicas int     `json:"replicas"`
	Callers  int     `json:"callers"`
	Redis    bool    `json:"remembered_in_redis"`
	Rate     float64 `json:"calls_per_second"`
	Atlas    float64 `json:"calls_to_atlas_per_second"`
	Model    float64 `json:"model_calls_to_atlas_per_second"`
	P50      float64 `json:"p50_ms"`
	P99      float64 `json:"p99_ms"`
	Refused  int     `json:"refused,omitempty"`
}

// model returns the most calls to Atlas per second: each caller's own, until replicas share them.
// Then each replica sends calls as closely spaced as it may. With a cache, a replica sends a call
// when the last token has expired, unless another replica was first.
func model(replicas, callers int, redis bool) float64 {
	own := float64(callers) / callsEach.Seconds()
	shared := float64(replicas*inFlight) / scaleLatency.Seconds()
	if redis {
		shared = float64(replicas) / (scaleTTL + scaleLatency).Seconds()
	}
	return min(own, shared)
}

// scale measures all points.
func (l *lab) scale(ctx context.Context, o options, progress io.Writer) (*scaling, error) {
	if _, err := find("redis-server"); err != nil {
		return nil, errors.New("redis-server is not installed: on Debian, apt-get install redis-server")
	}
	replicas, callers := []int{1, 2, 4}, []int{1, 10, 100, 1000, 10_000}
	if o.quick {
		replicas, callers = replicas[:2], callers[:2]
	}
	s := &scaling{Machine: thisMachine()}
	for _, redis := range []bool{false, true} {
		for _, n := range replicas {
			for _, c := range callers {
				p, err := l.scalePoint(ctx, n, c, redis, max(o.Duration, 2*callsEach))
				if err != nil {
					return nil, fmt.Errorf("%d replicas, %d callers: %w", n, c, err)
				}
				s.Points = append(s.Points, p)
				fmt.Fprintf(progress, "%d replicas, %d callers, remembered %v: %s calls to Atlas a second, model %s\n", n, c, redis, digits(p.Atlas), digits(p.Model))
			}
		}
	}
	return s, nil
}

func (l *lab) scalePoint(ctx context.Context, replicas, callers int, remembered bool, d time.Duration) (scalePoint, error) {
	p := scalePoint{Replicas: replicas, Callers: callers, Redis: remembered, Model: model(replicas, callers, remembered)}
	if err := l.setLatency(ctx, scaleLatency); err != nil {
		return p, err
	}
	var flags []string
	if remembered {
		redis, addr, err := startRedis(ctx, l)
		if err != nil {
			return p, err
		}
		defer redis.stop()
		flags = []string{"--cache-ttl", scaleTTL.String(), "--cache-redis-url", "redis://" + addr}
	}
	all, stop, err := l.startReplicas(ctx, replicas, callers, flags)
	defer stop()
	if err != nil {
		return p, err
	}
	if _, err := driveSteadily(ctx, all, callsEach); err != nil { // establishes the connections
		return p, err
	}
	before, err := l.calls(ctx)
	if err != nil {
		return p, err
	}
	seen, err := driveSteadily(ctx, all, d)
	if err != nil {
		return p, err
	}
	after, err := l.calls(ctx)
	if err != nil {
		return p, err
	}
	p.Rate, p.Atlas = float64(len(seen.latencies))/seen.took.Seconds(), float64(after-before)/seen.took.Seconds()
	p.P50, p.P99, p.Refused = milliseconds(seen.quantile(0.5)), milliseconds(seen.quantile(0.99)), seen.refused
	return p, nil
}

// startReplicas starts replicas with an equal share of the callers each. stop must be called even
// after an error.
func (l *lab) startReplicas(ctx context.Context, replicas, callers int, flags []string) (all []caller, stop func(), err error) {
	var stops []func()
	stop = func() {
		for _, f := range slices.Backward(stops) {
			f()
		}
	}
	for i := range replicas {
		r, err := startTokend(ctx, l, false, nil, flags)
		if err != nil {
			return nil, stop, err
		}
		stops = append(stops, r.stop)
		who, err := grpcCallers(r.grpc, nil, (callers+replicas-1-i)/replicas, 16, oneCredential)
		if err != nil {
			return nil, stop, err
		}
		stops = append(stops, who.close)
		all = append(all, who.all...)
	}
	return all, stop, nil
}

// driveSteadily makes each caller call every callsEach for d, until the first failure.
func driveSteadily(ctx context.Context, all []caller, d time.Duration) (outcome, error) {
	start := time.Now()
	seen, err := together(ctx, all, func(ctx context.Context, o *callerOutcome, c caller) error {
		for at := start.Add(rand.N(callsEach)); at.Before(start.Add(d)) && ctx.Err() == nil; at = at.Add(callsEach) { //nolint:gosec // no secret
			wait(ctx, time.Until(at))
			begin := time.Now()
			switch err := c.call(ctx); {
			case errors.Is(err, errRefused):
				o.refused++
			case err != nil:
				return err
			default:
				o.latencies = append(o.latencies, time.Since(begin))
			}
		}
		return nil
	})
	if err == nil && len(seen.latencies) == 0 {
		err = errors.New("no call was answered")
	}
	return seen, err
}

// write writes the numbers and their plots to a folder.
func (s *scaling) write(dir string) error {
	return writeResults(dir, "scaling.json", s, map[string]string{"scaling.md": s.summary(), "scaling.svg": s.plot()})
}

func (s *scaling) summary() string {
	var b strings.Builder
	fmt.Fprintf(&b, "<!-- Written by `go run -C bench . -scaling`; do not edit. -->\n\n")
	fmt.Fprintf(&b, "%s. Callers of one credential, each with a call every %v; Atlas at %v; remembered means for %v in one Redis.\n",
		s.Machine, callsEach, scaleLatency, scaleTTL)
	fmt.Fprintf(&b, "\n| remembered | replicas | callers | calls a second | calls to Atlas a second | model, at most | p50 | p99 | refused |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, p := range s.Points {
		remembered := "no"
		if p.Redis {
			remembered = "yes"
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %s | **%s** | %s | %s ms | %s ms | %d |\n", remembered, p.Replicas, p.Callers, digits(p.Rate), digits(p.Atlas), digits(p.Model), digits(p.P50), digits(p.P99), p.Refused)
	}
	return b.String()
}

// Measures of the two plots, in pixels.
const (
	chartWidth, chartHeight = 400, 300
	chartLeft, chartTop     = 60, 60
)

// plot draws calls to Atlas over callers on logarithmic axes, with a line for each number of
// replicas and a dashed one for the model.
func (s *scaling) plot() string {
	var b strings.Builder
	width, height := 2*(chartLeft+chartWidth)+40, chartTop+chartHeight+60
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/>`+"\n")
	for i, redis := range []bool{false, true} {
		title := "Calls to Atlas a second, by callers"
		if redis {
			title = "The same, tokens remembered in Redis for " + scaleTTL.String()
		}
		left := chartLeft + i*(chartLeft+chartWidth)
		fmt.Fprintf(&b, `<text x="%d" y="26" font-size="15" font-weight="bold">%s</text>`+"\n", left, title)
		s.drawChart(&b, left, redis)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// replicaColors are by number of replicas.
var replicaColors = map[int]string{1: "#1f6fb2", 2: "#c1602c", 4: "#2c8a4b"}

func (s *scaling) drawChart(b *strings.Builder, left int, redis bool) {
	const decades = 4.0 // from 1 to 10,000, on both axes
	x := func(callers int) float64 { return float64(left) + chartWidth*math.Log10(float64(callers))/decades }
	y := func(calls float64) float64 {
		return chartTop + chartHeight - chartHeight*math.Log10(max(calls, 1))/decades
	}
	for n := 1; n <= 10_000; n *= 10 {
		fmt.Fprintf(b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#ddd"/>`+"\n", x(n), x(n), chartTop, chartTop+chartHeight)
		fmt.Fprintf(b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/>`+"\n", left, left+chartWidth, y(float64(n)), y(float64(n)))
		fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle">%d</text>`+"\n", x(n), chartTop+chartHeight+18, n)
		fmt.Fprintf(b, `<text x="%d" y="%.1f" text-anchor="end">%d</text>`+"\n", left-6, y(float64(n))+4, n)
	}
	labels := 0
	for _, replicas := range []int{1, 2, 4} {
		var measured, modeled []string
		for _, p := range s.Points {
			if p.Replicas == replicas && p.Redis == redis {
				measured = append(measured, fmt.Sprintf("%.1f,%.1f", x(p.Callers), y(p.Atlas)))
				modeled = append(modeled, fmt.Sprintf("%.1f,%.1f", x(p.Callers), y(p.Model)))
			}
		}
		if measured == nil {
			continue
		}
		color := replicaColors[replicas]
		fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-dasharray="5 4"/>`+"\n", strings.Join(modeled, " "), color)
		fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(measured, " "), color)
		for _, point := range measured {
			at := strings.Split(point, ",")
			fmt.Fprintf(b, `<circle cx="%s" cy="%s" r="3" fill="%s"/>`+"\n", at[0], at[1], color)
		}
		fmt.Fprintf(b, `<text x="%d" y="%d" fill="%s">replicas: %d; dashed: the model</text>`+"\n", left+8, chartTop+18+18*labels, color, replicas)
		labels++
	}
}
