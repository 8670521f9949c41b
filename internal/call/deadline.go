package call

import (
	"context"
	"sync"
	"time"
)

// deadlined is context.WithDeadline, but that its timer is not there before somebody asks when it ends. A call that is answered from
// memory waits for nothing, and nobody does; the timer, and the way of a cancellation down to it, would be a good part of its price.
type deadlined struct {
	context.Context // the parent

	deadline time.Time
	cut      context.Context // ends it too

	mu     sync.Mutex
	timed  context.Context    // guarded by mu; nil before somebody asks
	cancel context.CancelFunc // guarded by mu; of timed
	over   bool               // guarded by mu; stop has been called
}

// withDeadline returns ctx with a deadline, which is not after that of ctx, and an end for who waits when cut is done. It has to be
// stopped.
func withDeadline(ctx context.Context, deadline time.Time, cut context.Context) *deadlined { //nolint:revive // it has one parent
	return &deadlined{Context: ctx, deadline: deadline, cut: cut}
}

// stop is the function that context.WithDeadline returns.
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
		timed, cancel := context.WithDeadline(d.Context, d.deadline)
		unhook := context.AfterFunc(d.cut, cancel)
		d.timed, d.cancel = timed, func() {
			unhook()
			cancel()
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

// Value implements context.Context. Package context finds by a value of its own whose children to cancel, so once there is a timer,
// that has the answers.
func (d *deadlined) Value(key any) any {
	d.mu.Lock()
	timed := d.timed
	d.mu.Unlock()
	if timed != nil {
		return timed.Value(key)
	}
	return d.Context.Value(key)
}
