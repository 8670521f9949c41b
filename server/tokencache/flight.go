package tokencache

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// flights run one call at a time for each credential. A caller that arrives while one is in the air waits for the next,
// together with all who arrive until that takes off: a flight never carries anybody who came after it began.
type flights struct {
	timeout time.Duration
	ctx     context.Context // of all flights
	cancel  context.CancelFunc
	work    sync.WaitGroup
	waiting atomic.Int64 // callers aboard of any flight

	mu    sync.Mutex
	lines map[key]*line // guarded by mu; one for each credential with a flight in the air
}

// line is a credential's flight in the air and the one that boards meanwhile.
type line struct {
	flying   *flight // guarded by flights.mu
	boarding *flight // guarded by flights.mu; nil: nobody waits
}

// flight is one shared call.
type flight struct {
	call   func(ctx context.Context, fresh bool) (Result, error)
	ctx    context.Context
	cancel context.CancelFunc

	aboard int  // guarded by flights.mu; callers that have not left
	fresh  bool // guarded by flights.mu until it takes off; somebody aboard wants nothing remembered

	landed chan struct{} // closed at the end
	result Result        // valid after landed
	err    error         // valid after landed
	panics any           // valid after landed; what call panicked with
}

var (
	errClosed = errors.New("the token cache is closed")
	errGoexit = errors.New("the shared call ended its goroutine")
)

func newFlights(timeout time.Duration) *flights {
	f := &flights{timeout: timeout, lines: map[key]*line{}}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

// join takes the next flight for k and returns what its call returns, or ctx's error. The first aboard brings the call; it
// runs in a context of its own, which ends when nobody is aboard any more.
func (f *flights) join(ctx context.Context, k key, fresh bool, call func(context.Context, bool) (Result, error)) (Result, error) {
	return f.joinOr(ctx, k, fresh, call, nil)
}

// lastMoment is how long before a caller's deadline he is given what is kept for when Atlas fails, because an Atlas that hangs
// has failed: enough for a look in Redis and the way back. Of a short time it is a quarter.
const lastMoment = 150 * time.Millisecond

// nearlyUp fires at the last moment of ctx; never, if ctx has none.
func nearlyUp(ctx context.Context) (fires <-chan time.Time, stop func() bool) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return nil, func() bool { return true }
	}
	left := time.Until(deadline)
	timer := time.NewTimer(left - min(lastMoment, left/4))
	return timer.C, timer.Stop
}

// joinOr is join for a caller who takes what kept has when his time is nearly up. Without it, nil, he waits to the end.
func (f *flights) joinOr(ctx context.Context, k key, fresh bool, call func(context.Context, bool) (Result, error), kept func(context.Context) (Result, bool)) (Result, error) {
	if err := ctx.Err(); err != nil { // nothing is begun for a caller who has gone
		return Result{Status: Status{Forward: ForwardMiss}}, err
	}
	fl, collapsed, err := f.board(k, fresh, call)
	if err != nil {
		return Result{}, err
	}
	f.waiting.Add(1)
	defer f.waiting.Add(-1)
	var last <-chan time.Time
	if kept != nil {
		fires, stop := nearlyUp(ctx)
		defer stop()
		last = fires
	}
	for landed := false; !landed; {
		select {
		case <-fl.landed:
			landed = true
		case <-last:
			if result, ok := kept(ctx); ok {
				f.leave(k, fl)
				return result, nil
			}
			last = nil // there is none: he waits for as long as he can
		case <-ctx.Done():
			f.leave(k, fl)
			return Result{Status: Status{Forward: ForwardMiss, Collapsed: collapsed}}, ctx.Err()
		}
	}
	if fl.panics != nil {
		panic(fl.panics) // as it would in a call of one's own
	}
	result := fl.result
	result.Status.Collapsed = collapsed && !result.Status.Hit
	return result, fl.err
}

func (f *flights) board(k key, fresh bool, call func(context.Context, bool) (Result, error)) (fl *flight, collapsed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ctx.Err() != nil {
		return nil, false, errClosed
	}
	l := f.lines[k]
	switch {
	case l == nil:
		l = &line{flying: newFlight(call)}
		f.lines[k] = l
		fl = l.flying
		f.work.Go(func() { f.fly(k, l, fl) })
	case l.boarding == nil:
		l.boarding = newFlight(call)
		fl = l.boarding
	default:
		fl, collapsed = l.boarding, true
	}
	fl.aboard++
	fl.fresh = fl.fresh || fresh
	return fl, collapsed, nil
}

func newFlight(call func(context.Context, bool) (Result, error)) *flight {
	return &flight{call: call, landed: make(chan struct{})}
}

func (f *flights) leave(k key, fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl.aboard--
	if fl.aboard > 0 {
		return
	}
	if l := f.lines[k]; l != nil && l.boarding == fl {
		l.boarding = nil // it never takes off
	}
	if fl.cancel != nil {
		fl.cancel()
	}
}

// fly is one flight. It lands whatever call does, also if that ends the goroutine.
func (f *flights) fly(k key, l *line, fl *flight) {
	defer f.land(k, l, fl)
	fresh := f.takeOff(fl)
	defer fl.cancel()
	fl.panics = errGoexit
	fl.result, fl.err, fl.panics = protect(func() (Result, error) { return fl.call(fl.ctx, fresh) })
}

func (f *flights) takeOff(fl *flight) (fresh bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl.ctx, fl.cancel = context.WithTimeout(f.ctx, f.timeout)
	if fl.aboard == 0 { // they left between boarding and now
		fl.cancel()
	}
	return fl.fresh
}

// land tells everybody aboard, and lets the next flight take off.
func (f *flights) land(k key, l *line, fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := l.boarding
	l.flying, l.boarding = next, nil
	if next == nil {
		delete(f.lines, k)
	} else {
		f.work.Go(func() { f.fly(k, l, next) })
	}
	close(fl.landed)
}

// protect runs call and returns what it panics with, since a panic would end the process: nobody is above this goroutine.
func protect(call func() (Result, error)) (result Result, err error, panics any) { //nolint:revive,staticcheck // three outcomes in their order
	defer func() { panics = recover() }()
	result, err = call()
	return result, err, nil
}

// close ends every flight and waits for it.
func (f *flights) close() {
	f.mu.Lock()
	f.cancel()
	f.mu.Unlock()
	f.work.Wait()
}
