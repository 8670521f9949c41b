package tokencache

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// group is the layer that shares. A caller waits for the next call for his credential, together with all callers that come
// before that leaves, and nobody joins a call that has left. So no caller shares a call that began before the caller arrived.
// When the next call leaves is for departure to say.
type group struct {
	next    layer
	timeout time.Duration // of a call, which has a deadline of its own because it outlives each of its waiters
	stale   bool          // a waiter may get a stale token shortly before its deadline
	caches  bool          // what a call brings is likely to be cached
	most    int           // calls in flight at a time for a credential
	tracer  trace.Tracer  // nil: no spans
	ctx     context.Context
	cancel  context.CancelFunc
	work    sync.WaitGroup
	waiting atomic.Int64

	mu      sync.Mutex
	calls   map[key]*succession // guarded by mu; one for each credential with a call in flight
	latency time.Duration       // guarded by mu; what calls to Atlas take, smoothed; 0: not known yet
}

// call is one shared create.
type call struct {
	request request // of the first waiter; noCache if any waiter's is; guarded by group.mu until the call leaves
	ctx     context.Context
	cancel  context.CancelFunc
	waiters int       // guarded by group.mu; those who have not left
	until   time.Time // guarded by group.mu until the call leaves; when the last of them has to leave; zero: never
	came    time.Time // when the first waiter came
	left    time.Time // guarded by group.mu; when the call left

	trace  callTrace
	done   chan struct{} // closed at the end
	result Result        // valid after done
	err    error         // valid after done
	panics any           // valid after done; what the call panicked with
}

var (
	errClosed = errors.New("the token cache is closed")
	errGoexit = errors.New("the shared call ended its goroutine")
)

func newGroup(next layer, timeout time.Duration, stale bool) *group {
	g := &group{next: next, timeout: timeout, stale: stale, most: maxInFlight, calls: map[key]*succession{}}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	return g
}

// create waits for the next call for r's credential. That has its own context, which ends when the last waiter leaves.
func (g *group) create(ctx context.Context, r request) (Result, error) {
	if err := ctx.Err(); err != nil { // no call for a caller that is gone
		return Result{Status: Status{Forward: ForwardMiss}}, err
	}
	c, leads, collapsed, err := g.join(ctx, r)
	if err != nil {
		return Result{}, err
	}
	if !sameCaller(c.request.cred, r.cred) { // a collision of keys
		g.leave(r.key, c)
		return g.next.create(ctx, r)
	}
	defer g.linkTo(ctx, c)
	g.waiting.Add(1)
	defer g.waiting.Add(-1)
	if leads != nil {
		return g.lead(ctx, leads, c)
	}
	nearlyUp, stop := g.nearlyUp(ctx, r)
	defer stop()
	for {
		select {
		case <-c.done:
			return c.answer(collapsed)
		case <-nearlyUp:
			if kept, ok := g.next.kept(ctx, r); ok {
				g.leave(r.key, c)
				return kept, nil
			}
			nearlyUp = nil // there is none: wait until the deadline
		case <-ctx.Done():
			g.leave(r.key, c)
			return Result{Status: Status{Forward: ForwardMiss, Collapsed: collapsed}}, ctx.Err()
		}
	}
}

// lead runs a call in the goroutine of its only waiter, and the call ends with his context. A goroutine of its own would grow a stack of
// its own, and take two switches between goroutines.
func (g *group) lead(ctx context.Context, s *succession, c *call) (Result, error) {
	g.run(ctx, s, c)
	if err := ctx.Err(); err != nil && c.err != nil {
		return Result{Status: Status{Forward: ForwardMiss}}, err
	}
	return c.answer(false)
}

// answer is what a waiter gets of a call that has ended.
func (c *call) answer(collapsed bool) (Result, error) {
	if c.panics != nil {
		panic(c.panics) // as in a call that is not shared
	}
	result := c.result
	result.Status.Collapsed = collapsed && !result.Status.Hit
	return result, c.err
}

// lastMoment is how long before its deadline a caller gets a stale token, because an Atlas that does not answer has failed.
// It is enough to read Redis and to send the answer. If the caller has less than four times as long, it is a quarter of that.
const lastMoment = 150 * time.Millisecond

// nearlyUp fires shortly before ctx's deadline; never, if no stale token may be returned then.
func (g *group) nearlyUp(ctx context.Context, r request) (fires <-chan time.Time, stop func() bool) {
	deadline, ok := ctx.Deadline()
	if !ok || !g.mayGoStale(r) {
		return nil, func() bool { return true }
	}
	left := time.Until(deadline)
	timer := time.NewTimer(left - min(lastMoment, left/4))
	return timer.C, timer.Stop
}

// join adds a waiter to the next call for r's credential. If that leaves now and he is alone in it, he has to run it, and leads is not
// nil: nobody joins a call that has left. Where a stale token may be served, a waiter may have to be let go before it ends.
func (g *group) join(ctx context.Context, r request) (c *call, leads *succession, collapsed bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ctx.Err() != nil {
		return nil, nil, false, errClosed
	}
	s := g.calls[r.key]
	if s == nil {
		s = newSuccession(r.key, g.caches)
		g.calls[r.key] = s
	}
	if s.next == nil {
		s.next = newCall(ctx, r)
	} else {
		collapsed = true
		s.next.extend(ctx)
	}
	c = s.next
	c.waiters++
	if g.tracer != nil {
		c.trace.joined(ctx)
	}
	c.request.noCache = c.request.noCache || r.noCache
	switch left := g.consider(s); {
	case left == nil:
	case left.waiters == 1 && !g.mayGoStale(r):
		leads = s
	default:
		go g.run(g.ctx, s, left)
	}
	return c, leads, collapsed, nil
}

// mayGoStale reports whether a waiter may get a stale token before its call has ended.
func (g *group) mayGoStale(r request) bool { return g.stale && !r.noCache }

func newCall(ctx context.Context, r request) *call {
	until, _ := ctx.Deadline()
	return &call{request: r, until: until, came: time.Now(), done: make(chan struct{})}
}

// extend has the call last for another waiter. The caller holds group.mu.
func (c *call) extend(ctx context.Context) {
	until, bounded := ctx.Deadline()
	if !bounded || c.until.IsZero() {
		c.until = time.Time{}
	} else if until.After(c.until) {
		c.until = until
	}
}

func (g *group) leave(k key, c *call) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c.waiters--
	if c.waiters > 0 {
		return
	}
	if s := g.calls[k]; s != nil && s.next == c {
		s.next = nil // so it never begins
	}
	if c.cancel != nil {
		c.cancel()
	}
}

// consider lets the next call leave if it may, and returns it, to be run. Otherwise it sees to it that it is considered again when it
// may. The caller holds mu.
func (g *group) consider(s *succession) *call {
	if s.next == nil {
		return nil
	}
	now := time.Now()
	switch wait := s.departure(now, g.most, g.latency).wait(); {
	case wait == 0:
		g.work.Add(1)
		return s.depart(now)
	case wait < never:
		s.wake(now.Add(wait), g)
	}
	return nil
}

// goOn has the next call run if it may leave. The caller holds mu.
func (g *group) goOn(s *succession) {
	if c := g.consider(s); c != nil {
		go g.run(g.ctx, s, c)
	}
}

// reconsider is what a timer does. If there is a next call, others are in flight, and close waits for them.
func (g *group) reconsider(s *succession) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s.wakes = time.Time{}
	g.goOn(s)
}

// run is one call, which ends with ctx. It ends whatever the layers below do, also if that ends the goroutine.
func (g *group) run(ctx context.Context, s *succession, c *call) {
	defer g.work.Done()
	defer g.end(s, c)
	r := g.begin(ctx, c)
	defer c.cancel()
	c.panics = errGoexit
	c.panics = protect(func() { c.result, c.err = g.next.create(c.ctx, r) })
}

func (g *group) begin(ctx context.Context, c *call) request {
	g.mu.Lock()
	defer g.mu.Unlock()
	// Nothing is begun, or begun again, that nobody has the time to wait for.
	until := time.Now().Add(g.timeout)
	if !c.until.IsZero() && c.until.Before(until) {
		until = c.until
	}
	c.ctx, c.cancel = context.WithDeadline(ctx, until)
	c.ctx = c.trace.begin(c.ctx, g.tracer, c.waiters)
	if c.waiters == 0 || g.ctx.Err() != nil { // they left, or all was closed, before it began
		c.cancel()
	}
	return c.request
}

// end wakes the waiters, and considers the next call.
func (g *group) end(s *succession, c *call) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	s.land(c, now)
	if c.err == nil && c.panics == nil && !c.result.Status.Hit { // what fails says little of what a call takes
		g.latency = smoothed(g.latency, now.Sub(c.left))
	}
	g.goOn(s)
	if len(s.flights) == 0 {
		s.stop()
		delete(g.calls, s.key)
	}
	c.trace.end(c.result, c.err)
	close(c.done)
}

// protect runs f and returns the value that it panics with. A panic in the goroutine of a shared call would end the process:
// no caller could recover it.
func protect(f func()) (panics any) {
	defer func() { panics = recover() }()
	f()
	return nil
}

// delete is not shared: a shared delete could have happened before one of its callers asked for it.
func (g *group) delete(ctx context.Context, r request) (string, error) { return g.next.delete(ctx, r) }

func (g *group) kept(ctx context.Context, r request) (Result, bool) { return g.next.kept(ctx, r) }

// close ends every call and waits for it.
func (g *group) close() {
	g.mu.Lock()
	g.cancel()
	for _, s := range g.calls {
		for _, c := range s.flights {
			if c.cancel != nil { // it has begun, maybe with the context of the one who runs it
				c.cancel()
			}
		}
	}
	g.mu.Unlock()
	g.work.Wait()
}
