package resilient

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

const (
	// Atlas is taken to be down when of the calls of the last breakerWindow so great a share has failed, and they were not
	// just a few. At half, the breaker would take from the others what they still get. A call that hung counts once more for
	// each second that it did: there are few of those in a window, because they do not make room for others.
	breakerRate   = 0.8
	breakerCalls  = 50
	breakerWindow = 5 * time.Second
	// While it is down, one call in this time goes through to see whether it is back; replicas that opened together drift apart.
	breakerDelay  = time.Second
	breakerJitter = 0.2

	// breakerPatience is how long a caller has to have waited for Atlas for it to count against Atlas that he gave up. A create
	// takes tens of milliseconds, so after a second it is no longer the caller who was in a hurry. It still takes most of all
	// calls to be like that.
	breakerPatience = time.Second
)

// verdict is what the end of an attempt says about Atlas.
type verdict int

const (
	verdictNone     verdict = iota // nothing
	verdictAnswered                // it works, whether the caller likes the answer or not
	verdictFailed                  // it is down
)

// judge says what an attempt that took so long says about Atlas.
func judge(ctx context.Context, err error, took time.Duration) verdict {
	if err == nil {
		return verdictAnswered
	}
	e := asError(err)
	if e == nil {
		return verdictNone
	}
	switch e.Kind {
	case atlas.KindUnreachable, atlas.KindTimeout:
		return verdictFailed
	case atlas.KindCanceled:
		if took >= breakerPatience && isOutOfTime(ctx) {
			return verdictFailed
		}
	case atlas.KindStatus:
		if e.StatusCode >= 500 {
			return verdictFailed
		}
		return verdictAnswered
	}
	// What only an operator can mend, such as a certificate or a redirect, is told to each caller as it is.
	return verdictNone
}

// isOutOfTime reports whether ctx's time is up, or as good as. The last waiter of a shared call leaves at the deadline that is also
// the call's, so either may be the first to end it: what ctx says it ended of does not tell.
func isOutOfTime(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ok && time.Until(deadline) < 10*time.Millisecond
}

// breaker refuses calls while Atlas is down. Failsafe-go's has the window, the rate and the delay. This adds that a result
// counts only in the state that its call began in, or what hung before would speak against an Atlas that is back; and that
// a probe goes out after each delay whatever became of the one before, or one that hangs would hold up all others.
type breaker struct {
	onChange func(cause error)

	mu         sync.Mutex
	circuit    circuitbreaker.CircuitBreaker[any] // changed under mu only
	generation uint64                             // guarded by mu; moves when Atlas is taken to be down, and when it is back
	since      time.Time                          // guarded by mu; when it opened; zero: it is closed
	cause      error                              // guarded by mu; of the last failure
}

func newBreaker(onChange func(cause error)) *breaker {
	return &breaker{onChange: onChange, circuit: circuitbreaker.NewBuilder[any]().
		WithFailureRateThreshold(breakerRate, breakerCalls, breakerWindow).
		WithDelay(breakerDelay).
		WithJitterFactor(breakerJitter).
		Build()}
}

// permit is a call that the breaker let through.
type permit struct {
	breaker    *breaker
	generation uint64
	probe      bool
	since      time.Time
}

// admit lets a call through, or says how long not to try again.
func (b *breaker) admit(op atlas.Operation) (permit, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.circuit.TryAcquirePermit() {
		return permit{}, b.refusal(op)
	}
	probe := b.circuit.IsHalfOpen()
	if probe {
		b.circuit.Open() // the delay begins anew
	}
	return permit{b, b.generation, probe, time.Now()}, nil
}

// recheck returns an error if Atlas was found to be down since the permit was given.
func (p permit) recheck(op atlas.Operation) error {
	p.breaker.mu.Lock()
	defer p.breaker.mu.Unlock()
	if !p.breaker.since.IsZero() {
		return p.breaker.refusal(op)
	}
	return nil
}

// done records what the call says about Atlas.
func (p permit) done(v verdict, err error) {
	b := p.breaker
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.generation != b.generation {
		return
	}
	if v == verdictFailed {
		b.cause = err
	}
	switch {
	case p.probe && v == verdictAnswered:
		b.circuit.Close()
		b.change(time.Time{}, nil)
	case p.probe && v == verdictNone:
		b.circuit.HalfOpen() // the next one is a probe
	case p.probe:
	case v == verdictAnswered:
		b.circuit.RecordSuccess()
	case v == verdictFailed:
		for range 1 + int(time.Since(p.since)/time.Second) {
			b.circuit.RecordFailure()
		}
	}
	if !p.probe && b.circuit.IsOpen() {
		b.change(time.Now(), b.cause)
	}
}

// change notes that it opened, or closed if since is zero. The caller holds mu.
func (b *breaker) change(since time.Time, cause error) {
	b.generation++
	b.since = since
	b.onChange(cause)
}

var errDown = errors.New("not asked, because it has failed too often just before")

// refusal is what a call is told that is not let through. The caller holds mu.
func (b *breaker) refusal(op atlas.Operation) *atlas.Error {
	wait := max(b.circuit.RemainingDelay(), time.Millisecond)
	return &atlas.Error{Op: op, Kind: atlas.KindUnavailable, RetryAfter: wait, Err: errDown}
}

// check is what an operator should know of.
func (b *breaker) check() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.since.IsZero() {
		return nil
	}
	return fmt.Errorf("Atlas is down since %s, and is asked about once a second until it answers: %w",
		b.since.UTC().Format(time.RFC3339), b.cause)
}
