package call

import (
	"context"
	"sync"
	"time"
)

// deadlined is a context with a deadline, which also ends when the service stops. Its timer starts with the first call of Done: a call
// that is answered from memory waits for nothing. With the contexts of the standard library BenchmarkChain takes twice as long,
// and a call over REST a tenth longer.
type deadlined struct {
	context.Context // the parent

	deadline time.Time
	cut      context.Context // its end is errShuttingDown

	mu     sync.Mutex
	timed  context.Context    // guarded by mu; nil before Done is called
	cancel context.CancelFunc // guarded by mu; of timed
	over   bool               // guarded by mu; stop has been called
}

// withDeadline returns ctx with a deadline, which is not after that of ctx. It has to be stopped.
func withDeadline(ctx context.Context, deadline time.Time, cut context.Context) *deadlined { //nolint:revive // it has one parent
	return &deadlined{Context: ctx, deadline: deadline, cut: cut}
}

// stop ends the context and its timer.
func (d *deadlined) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
	if d.cancel != nil {
		d.cancel()
	}
}

// Deadline implements context.Context.
func (d *deadlined) Deadline() (time.Time, bool) { return d.deadline, true }

// Done implements context.Context.
func (d *deadlined) Done() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.timed != nil:
	case d.over:
		d.timed, d.cancel = context.WithCancel(d.Context)
		d.cancel()
	default:
		ctx, end := context.WithCancelCause(d.Context)
		unhook := context.AfterFunc(d.cut, func() { end(errShuttingDown) })
		timed, cancel := context.WithDeadline(ctx, d.deadline)
		d.timed, d.cancel = timed, func() {
			unhook()
			cancel()
			end(nil)
		}
	}
	return d.timed.Done()
}

// Err implements context.Context.
func (d *deadlined) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.timed != nil:
		return d.timed.Err()
	case d.Context.Err() != nil:
		return d.Context.Err()
	case d.over:
		return context.Canceled
	case !time.Now().Before(d.deadline):
		return context.DeadlineExceeded
	}
	return nil
}

// Value implements context.Context. Package context finds the parent of a context by a value of its own, so once there is a timed
// context, that one has to answer.
func (d *deadlined) Value(key any) any {
	d.mu.Lock()
	timed := d.timed
	d.mu.Unlock()
	if timed != nil {
		return timed.Value(key)
	}
	return d.Context.Value(key)
}
