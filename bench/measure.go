package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

// effort is the size of a run.
type effort struct {
	Rounds      int           `json:"rounds"`
	Duration    time.Duration `json:"duration_ns"` // of each measurement under load
	WarmUp      time.Duration `json:"warm_up_ns"`
	Connections int           `json:"grpc_connections"` // shared by the gRPC callers
	Idle        int           `json:"idle_connections"`
	Starts      int           `json:"starts"` // in each round
}

// measure measures a server once.
func (l *lab) measure(ctx context.Context, c testCase, s server, e effort, profile string) (sample, error) {
	if c.how == starting {
		return l.measureStart(ctx, c, s, e)
	}
	r, err := s.start(ctx, l, c.mtls)
	if err != nil {
		return sample{}, err
	}
	defer r.stop()
	if c.how == idle {
		return l.measureIdle(ctx, c, r, e)
	}
	return l.measureLoad(ctx, c, s, r, e, profile)
}

func (l *lab) measureStart(ctx context.Context, c testCase, s server, e effort) (sample, error) {
	var times []float64
	for range e.Starts {
		r, err := s.start(ctx, l, c.mtls)
		if err != nil {
			return sample{}, err
		}
		r.stop()
		times = append(times, milliseconds(r.ready))
	}
	return sample{Ready: spreadOf(times).Median}, nil
}

// identities returns the callers' TLS configurations, none for plaintext.
func (l *lab) identities(c testCase) []*tls.Config {
	if c.mtls {
		return l.certs.clients
	}
	return nil
}

// connect makes the callers of a case.
func (l *lab) connect(ctx context.Context, c testCase, s server, r *running, e effort) (*callers, error) {
	n := c.callers
	if s.callers > 0 {
		n = s.callers
	}
	of := ownCredentials
	if c.oneCredential {
		of = oneCredential
	}
	if c.over == overREST {
		return restCallers(ctx, r.rest, l.identities(c), n, of)
	}
	return grpcCallers(r.grpc, l.identities(c), n, e.Connections, of)
}

// state is read before and after a load.
type state struct {
	usage, redis     usage
	atlas, atlasMost int
}

func (l *lab) state(ctx context.Context, r *running) (s state, err error) {
	if s.atlas, err = l.calls(ctx); err != nil {
		return state{}, err
	}
	if s.atlasMost, err = l.most(ctx); err != nil {
		return state{}, err
	}
	if r.redis != nil {
		if s.redis, err = r.redis.usage(); err != nil {
			return state{}, err
		}
	}
	s.usage, err = r.usage()
	return s, err
}

func (l *lab) measureLoad(ctx context.Context, c testCase, s server, r *running, e effort, profile string) (sample, error) {
	if err := l.setLatency(ctx, c.latency); err != nil {
		return sample{}, err
	}
	who, err := l.connect(ctx, c, s, r, e)
	if err != nil {
		return sample{}, err
	}
	defer who.close()
	// Establishes the connections and fills the cache.
	if _, err := drive(ctx, who.all, e.WarmUp); err != nil {
		return sample{}, err
	}
	profiled := takeProfile(ctx, r, profile, e.Duration)
	before, err := l.state(ctx, r)
	if err != nil {
		return sample{}, err
	}
	seen, err := drive(ctx, who.all, e.Duration)
	if err != nil {
		return sample{}, err
	}
	after, err := l.state(ctx, r)
	if err != nil {
		return sample{}, err
	}
	if err := profiled(); err != nil {
		return sample{}, err
	}
	calls := len(seen.latencies)
	return sample{
		Calls: calls, Refused: seen.refused, AtlasCalls: after.atlas - before.atlas,
		AtlasRate: float64(after.atlas-before.atlas) / seen.took.Seconds(), AtlasMost: after.atlasMost,
		CPUMicros: perCall(after.usage.cpu-before.usage.cpu, calls), RedisCPU: perCall(after.redis.cpu-before.redis.cpu, calls),
		Rate: float64(calls) / seen.took.Seconds(),
		P50:  milliseconds(seen.quantile(0.5)), P99: milliseconds(seen.quantile(0.99)), P999: milliseconds(seen.quantile(0.999)),
		Resident: float64(after.usage.resident) / (1 << 20),
	}, nil
}

// settle is the wait before the memory of a server is read.
const settle = 500 * time.Millisecond

// measureIdle measures the memory of connections after one call on each.
func (l *lab) measureIdle(ctx context.Context, c testCase, r *running, e effort) (sample, error) {
	if err := l.setLatency(ctx, 0); err != nil {
		return sample{}, err
	}
	first, err := grpcCallers(r.grpc, l.identities(c), 1, 1, ownCredentials)
	if err != nil {
		return sample{}, err
	}
	defer first.close()
	if err := first.all[0].call(ctx); err != nil {
		return sample{}, err
	}
	before, err := r.usage()
	if err != nil {
		return sample{}, err
	}
	many, err := grpcCallers(r.grpc, l.identities(c), e.Idle, e.Idle, ownCredentials)
	if err != nil {
		return sample{}, err
	}
	defer many.close()
	if err := inTurn(ctx, many.all); err != nil {
		return sample{}, err
	}
	select {
	case <-ctx.Done():
		return sample{}, ctx.Err()
	case <-time.After(settle):
	}
	after, err := r.usage()
	if err != nil {
		return sample{}, err
	}
	return sample{
		PerConn:  float64(after.resident-before.resident) / float64(e.Idle) / 1024,
		Resident: float64(after.resident) / (1 << 20),
	}, nil
}

// inTurn makes each caller call once, 16 at a time.
func inTurn(ctx context.Context, all []caller) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var work sync.WaitGroup
	next := make(chan caller)
	for range 16 {
		work.Go(func() {
			for c := range next {
				if err := c.call(ctx); err != nil {
					cancel(fmt.Errorf("open a connection: %w", err))
				}
			}
		})
	}
	for _, c := range all {
		next <- c
	}
	close(next)
	work.Wait()
	return context.Cause(ctx)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func perCall(cpu time.Duration, calls int) float64 {
	return float64(cpu.Nanoseconds()) / 1000 / float64(calls)
}

// sample is one measurement of one server. Values that were not measured are zero, and omitted from
// the raw results.
type sample struct {
	Calls      int     `json:"calls,omitempty"`   // answered
	Refused    int     `json:"refused,omitempty"` // over the server's limit
	AtlasCalls int     `json:"atlas_calls"`
	AtlasRate  float64 `json:"atlas_calls_per_second,omitempty"`
	AtlasMost  int     `json:"atlas_calls_at_a_time,omitempty"`
	CPUMicros  float64 `json:"cpu_us_per_call,omitempty"` // of the server
	RedisCPU   float64 `json:"redis_cpu_us_per_call,omitempty"`
	Rate       float64 `json:"calls_per_second,omitempty"`
	P50        float64 `json:"p50_ms,omitempty"`
	P99        float64 `json:"p99_ms,omitempty"`
	P999       float64 `json:"p999_ms,omitempty"`
	Resident   float64 `json:"resident_mib,omitempty"` // after the calls
	PerConn    float64 `json:"kib_per_connection,omitempty"`
	Ready      float64 `json:"ready_ms,omitempty"`
}

// metric is a value of a sample.
type metric struct {
	name, unit string
	of         func(sample) float64
}

var (
	cpuPerCall    = metric{"CPU per call", "µs", func(s sample) float64 { return s.CPUMicros }}
	rate          = metric{"calls a second", "", func(s sample) float64 { return s.Rate }}
	median        = metric{"p50", "ms", func(s sample) float64 { return s.P50 }}
	p99           = metric{"p99", "ms", func(s sample) float64 { return s.P99 }}
	p999          = metric{"p99.9", "ms", func(s sample) float64 { return s.P999 }}
	atlasRate     = metric{"calls to Atlas a second", "", func(s sample) float64 { return s.AtlasRate }}
	atlasMost     = metric{"at a time", "", func(s sample) float64 { return float64(s.AtlasMost) }}
	resident      = metric{"memory", "MiB", func(s sample) float64 { return s.Resident }}
	perConnection = metric{"memory per connection", "KiB", func(s sample) float64 { return s.PerConn }}
	untilReady    = metric{"time", "ms", func(s sample) float64 { return s.Ready }}
)

// spread is the median, minimum and maximum of several rounds.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := sorted[len(sorted)/2]
	if len(sorted)%2 == 0 {
		middle = (middle + sorted[len(sorted)/2-1]) / 2
	}
	return spread{middle, sorted[0], sorted[len(sorted)-1]}
}

// takeProfile starts a CPU profile of tokend into a file, and writes its explanation next to it.
// done waits for both. Without a file name or an admin address there is no profile.
func takeProfile(ctx context.Context, r *running, file string, d time.Duration) (done func() error) {
	if file == "" || r.admin == "" {
		return func() error { return nil }
	}
	result := make(chan error, 1)
	go func() {
		err := fetchProfile(ctx, r.admin, file, d)
		if err == nil {
			err = explainProfile(ctx, file)
		}
		result <- err
	}()
	return func() error { return <-result }
}

func fetchProfile(ctx context.Context, admin, file string, d time.Duration) error {
	resp, err := get(ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", admin, max(1, int(d.Seconds()))))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("tokend has no CPU profile at its admin address (%s): run without -profile", resp.Status)
	}
	to, err := os.Create(file)
	if err != nil {
		return err
	}
	if _, err := io.Copy(to, resp.Body); err != nil {
		_ = to.Close() // the first error is returned
		return err
	}
	return to.Close()
}

// explainProfile writes the top functions of a profile as text, by their own time and then by
// cumulative time.
func explainProfile(ctx context.Context, file string) error {
	var text []byte
	for _, order := range []string{"-flat", "-cum"} {
		out, err := exec.CommandContext(ctx, "go", "tool", "pprof", "-top", order, "-nodecount=40", file).Output() //nolint:gosec // a file of this run
		if err != nil {
			return fmt.Errorf("go tool pprof -top %s: %w", file, err)
		}
		text = append(text, out...)
	}
	return os.WriteFile(strings.TrimSuffix(file, ".pprof")+".txt", text, 0o600)
}
