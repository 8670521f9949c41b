package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"sync"
	"time"
)

// effort is how much is measured.
type effort struct {
	Rounds      int           `json:"rounds"`
	Duration    time.Duration `json:"duration_ns"` // of each measurement under load
	WarmUp      time.Duration `json:"warm_up_ns"`
	Connections int           `json:"grpc_connections"` // that callers share over gRPC
	Idle        int           `json:"idle_connections"`
	Starts      int           `json:"starts"` // in each round
}

// measure measures one server once.
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

// identities are what callers connect with, none for plaintext.
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

// state is what is read before and after a load.
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
	// Connections are made, and what can be remembered is.
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

// settle is how long a server is left alone before its memory is read.
const settle = 500 * time.Millisecond

// measureIdle opens connections, makes one call on each, and leaves them alone.
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

// inTurn has each caller call once, a few at a time.
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
