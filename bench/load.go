package main

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// outcome is what callers have seen: how long each call took, in order, and how long all of them
// were at it.
type outcome struct {
	latencies []time.Duration // of those that were answered
	refused   int
	took      time.Duration
}

// errRefused is a server's answer that it has too many calls. It is counted, and no failure.
var errRefused = errors.New("the server refuses the call: it has too many")

// pause is how long a caller that was refused leaves the server alone.
const pause = 100 * time.Millisecond

// callerOutcome is what one caller has seen.
type callerOutcome struct {
	latencies []time.Duration
	refused   int
}

// drive has c call until end, and with each of its credentials.
func (o *callerOutcome) drive(ctx context.Context, c caller, end time.Time) error {
	for ctx.Err() == nil && (time.Now().Before(end) || len(o.latencies) < credentialsEach) {
		begin := time.Now()
		err := c.call(ctx)
		if errors.Is(err, errRefused) && begin.Before(end.Add(callTimeout)) {
			o.refused++
			wait(ctx, pause)
			continue
		}
		if err != nil {
			return err
		}
		o.latencies = append(o.latencies, time.Since(begin))
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// drive has each caller call again as soon as it is answered, for d and with each of its
// credentials. The first failure ends it.
func drive(ctx context.Context, all []caller, d time.Duration) (outcome, error) {
	end := time.Now().Add(d)
	return together(ctx, all, func(ctx context.Context, o *callerOutcome, c caller) error { return o.drive(ctx, c, end) })
}

// together has all callers do something at a time, and puts together what they have seen. The first
// failure ends it.
func together(ctx context.Context, all []caller, do func(context.Context, *callerOutcome, caller) error) (outcome, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		work  sync.WaitGroup
		each  = make([]callerOutcome, len(all))
		start = time.Now()
	)
	for i, c := range all {
		work.Go(func() {
			if err := do(ctx, &each[i], c); err != nil {
				cancel(err)
			}
		})
	}
	work.Wait()
	result := outcome{took: time.Since(start)}
	for _, one := range each {
		result.latencies = append(result.latencies, one.latencies...)
		result.refused += one.refused
	}
	slices.Sort(result.latencies)
	return result, context.Cause(ctx)
}

// quantile of the latencies: 0.5 is the median. There has to be one.
func (o outcome) quantile(q float64) time.Duration {
	return o.latencies[min(int(q*float64(len(o.latencies))), len(o.latencies)-1)]
}
