package tokencache

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// group is the layer that shares calls. A caller waits for the next call for its credential,
// together with all callers that arrive before that call is sent. No caller joins a call that has
// been sent, so no caller shares a call that began before the caller arrived. wait decides when the
// next call is sent.
type group struct {
	next    layer
	timeout time.Duration // of a call, which outlives each of its waiters and so has its own deadline
	caches  bool          // the next layer caches answers
	tracer  trace.Tracer  // nil: no spans
	// stale returns a cached token for a waiter whose deadline is near; nil: there are none.
	stale   func(context.Context, request) Result
	ctx     context.Context // ends with close
	cancel  context.CancelFunc
	work    sync.WaitGroup // added to under mu, while ctx lasts
	waiting atomic.Int64

	mu      sync.Mutex
	queues  map[key]*queue // guarded by mu; one for each credential with a call in flight
	latency time.Duration  // guarded by mu; moving average of what shared calls take; 0: not known yet
}

// queue holds the shared calls for one credential: those in flight, and the next one, which callers
// join until it is sent. It is guarded by group.mu.
type queue struct {
	key      key
	next     *call // nil if no caller waits for it
	inFlight []*call
	sent     time.Time   // when the last call was sent
	timer    *time.Timer // sends the next call; nil if it is not set
}

// call is one shared create, or a delete.
type call struct {
	queue   *queue  // nil for a delete
	request request // of the first waiter; noCache if any waiter's is; guarded by group.mu until it is sent
	ctx     context.Context
	cancel  context.CancelFunc
	waiters int       // guarded by group.mu; those that have not left
	until   time.Time // guarded by group.mu until it is sent; the last deadline of a waiter; zero: none
	sent    time.Time // guarded by group.mu

	trace  callTrace
	done   chan struct{} // closed at the end
	result Result        // valid after done
	err    error         // valid after done
	panics any           // valid after done; the value that the call panicked with
}

var (
	errClosed = errors.New("token cache closed")
	errGoexit = errors.New("the shared call ended its goroutine")
)

func newGroup(next layer, timeout time.Duration) *group {
	g := &group{next: next, timeout: timeout, queues: map[key]*queue{}}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	return g
}

// create waits for the next call for r's credential. The cached token that may come with the error
// of a failed call is for the waiters that accept one.
func (g *group) create(ctx context.Context, r request) (Result, error) {
	result, err := g.share(ctx, r)
	switch {
	case err == nil || !result.Status.Hit:
		return result, err
	case r.noCache:
		return Result{}, err
	}
	return result, nil
}

func (g *group) share(ctx context.Context, r request) (Result, error) {
	if err := ctx.Err(); err != nil { // no call for a caller that has left
		return Result{}, err
	}
	c, sent, collapsed, err := g.join(ctx, r)
	if err != nil {
		return Result{}, err
	}
	g.waiting.Add(1)
	defer g.waiting.Add(-1)
	lastMoment := g.lastMoment(ctx, r)
	if sent && !collapsed && lastMoment == nil {
		// No other caller waits for the call, so it needs no goroutine of its own, which would cost
		// an eighth of its CPU.
		g.run(ctx, c)
		if err := ctx.Err(); err != nil && c.err != nil {
			return Result{}, err
		}
		return c.answer(false)
	}
	if sent {
		go g.run(context.Background(), c) //nolint:gosec // it outlives each of its waiters
	}
	if collapsed && identityOf(c.request.cred) != identityOf(r.cred) { // the keys of two credentials collide
		g.leave(r.key, c)
		return g.next.create(ctx, r)
	}
	defer g.linkTo(ctx, c)
	for {
		select {
		case <-c.done:
			return c.answer(collapsed)
		case <-lastMoment:
			if found := g.stale(ctx, r); found.Status.Hit {
				g.leave(r.key, c)
				return found, nil
			}
			lastMoment = nil // nothing is cached: wait until the deadline
		case <-ctx.Done():
			g.leave(r.key, c)
			return Result{Status: Status{Collapsed: collapsed}}, ctx.Err()
		}
	}
}

// answer returns the outcome of a call that has ended.
func (c *call) answer(collapsed bool) (Result, error) {
	if c.panics != nil {
		panic(c.panics) // as if the call were not shared
	}
	result := c.result
	result.Status.Collapsed = collapsed && !result.Status.Hit
	return result, c.err
}

// staleMargin is how long before its deadline a caller gets a stale token, because an Atlas that
// does not answer has failed. It is enough to read Redis and to send the answer. A caller with less
// than four times as long gets it when a quarter of its time is left.
const staleMargin = 150 * time.Millisecond

// lastMoment fires shortly before ctx's deadline, or never if the caller may not get a stale token.
func (g *group) lastMoment(ctx context.Context, r request) <-chan time.Time {
	deadline, ok := ctx.Deadline()
	if !ok || g.stale == nil || r.noCache {
		return nil
	}
	left := time.Until(deadline)
	return time.After(left - min(staleMargin, left/4))
}

// join adds a waiter to the next call for r's credential. If wait allows it, that call is sent: the
// caller of join has to run it.
func (g *group) join(ctx context.Context, r request) (c *call, sent, collapsed bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ctx.Err() != nil {
		return nil, false, false, errClosed
	}
	q := g.queues[r.key]
	if q == nil {
		q = &queue{key: r.key}
		g.queues[r.key] = q
	}
	if q.next == nil {
		until, _ := ctx.Deadline()
		q.next = &call{queue: q, request: r, until: until, done: make(chan struct{})}
	} else {
		collapsed = true
		q.next.extend(ctx)
	}
	c = q.next
	c.waiters++
	c.request.noCache = c.request.noCache || r.noCache
	if g.tracer != nil {
		c.trace.joined(ctx)
	}
	return c, g.send(q) != nil, collapsed, nil
}

// extend makes the call last for another waiter. The caller holds group.mu.
func (c *call) extend(ctx context.Context) {
	until, bounded := ctx.Deadline()
	if !bounded || c.until.IsZero() {
		c.until = time.Time{}
	} else if until.After(c.until) {
		c.until = until
	}
}

// leave removes a waiter. The call is cancelled, or not sent at all, when the last one has left.
func (g *group) leave(k key, c *call) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c.waiters--
	if c.waiters > 0 {
		return
	}
	if q := g.queues[k]; q != nil && q.next == c {
		q.next = nil
	}
	if c.cancel != nil {
		c.cancel()
	}
}

const (
	// maxInFlight bounds the shared calls in flight for one credential.
	maxInFlight = 4
	// minSpacing keeps calls from overlapping where Atlas answers in a millisecond or two.
	minSpacing = 2 * time.Millisecond
)

// wait returns how long after the last call of a queue the next one may be sent. It is false if a
// call has to finish first. The caller holds mu.
//
// Overlapping calls keep the wait short: under load a caller waits for little more than one call,
// and not for the rest of the call before as well. If the answer of the call in flight will be
// cached, a second call is only worth its cost when the first one is late.
func (g *group) wait(q *queue) (time.Duration, bool) {
	switch {
	case len(q.inFlight) == 0:
		return 0, true
	case len(q.inFlight) >= maxInFlight || g.latency == 0:
		return 0, false
	case g.caches && !q.next.request.noCache:
		return max(2*g.latency, minSpacing), true
	}
	return max(g.latency/maxInFlight, minSpacing), true
}

// send takes the next call out of a queue, for the caller to run. If wait does not allow it yet, or
// there is none, send returns nil, and the call is run later. The caller holds mu.
func (g *group) send(q *queue) *call {
	if q.next == nil || q.timer != nil {
		return nil
	}
	wait, ok := g.wait(q)
	if !ok {
		return nil // finish sends it
	}
	now := time.Now()
	if left := q.sent.Add(wait).Sub(now); len(q.inFlight) > 0 && left > 0 {
		q.timer = time.AfterFunc(left, func() { g.wake(q) })
		return nil
	}
	c := q.next
	q.next = nil
	q.inFlight = append(q.inFlight, c)
	q.sent, c.sent = now, now
	g.work.Add(1)
	return c
}

// wake sends the next call when its timer fires. Close waits for the calls that are in flight then.
func (g *group) wake(q *queue) {
	g.mu.Lock()
	q.timer = nil
	c := g.send(q)
	g.mu.Unlock()
	if c != nil {
		g.run(context.Background(), c)
	}
}

// run makes one call within ctx. It finishes the call whatever the layers below do, even if they
// end the goroutine.
func (g *group) run(ctx context.Context, c *call) {
	defer g.finish(c)
	r := g.begin(ctx, c)
	defer c.cancel()
	c.protect(func() { c.result, c.err = g.next.create(c.ctx, r) })
}

// protect runs f and keeps the value that it panics with. A panic in the goroutine of a call would
// end the process, because no caller could recover it.
func (c *call) protect(f func()) {
	c.panics = errGoexit
	defer func() {
		if p := recover(); p != nil {
			c.panics = p
		}
	}()
	f()
	c.panics = nil
}

func (g *group) begin(ctx context.Context, c *call) request {
	g.mu.Lock()
	defer g.mu.Unlock()
	until := time.Now().Add(g.timeout)
	if !c.until.IsZero() && c.until.Before(until) { // no waiter has more time
		until = c.until
	}
	if own, ok := ctx.Deadline(); ok && !own.After(until) {
		c.ctx, c.cancel = ctx, func() {} // another context would cost a thirtieth of the call
	} else {
		c.ctx, c.cancel = context.WithDeadline(ctx, until)
	}
	c.ctx = c.trace.begin(c.ctx, g.tracer, c.waiters)
	if c.waiters == 0 || g.ctx.Err() != nil { // all left, or close was called, before it began
		c.cancel()
	}
	return c.request
}

// finish wakes the waiters of a call, and sends the next one.
func (g *group) finish(c *call) {
	defer g.work.Done()
	g.mu.Lock()
	defer g.mu.Unlock()
	q := c.queue
	q.inFlight = slices.DeleteFunc(q.inFlight, func(other *call) bool { return other == c })
	if c.err == nil && c.panics == nil && !c.result.Status.Hit { // only successful calls count
		took := time.Since(c.sent)
		if g.latency == 0 {
			g.latency = took
		}
		g.latency += (took - g.latency) / 8
	}
	if q.timer != nil && len(q.inFlight) == 0 {
		q.timer.Stop()
		q.timer = nil
	}
	if next := g.send(q); next != nil {
		go g.run(context.Background(), next)
	}
	if len(q.inFlight) == 0 {
		delete(g.queues, q.key)
	}
	c.trace.end(c.result, c.err)
	close(c.done)
}

// delete does not share: a shared delete could have happened before one of its callers asked for
// it. With a cache, it returns when its caller leaves, and the delete itself ends then only if it
// has not been sent: the fence depends on its outcome.
func (g *group) delete(ctx context.Context, r request) (string, error) {
	if !g.caches {
		return g.next.delete(ctx, r)
	}
	c := &call{done: make(chan struct{})}
	if !g.spawn(func() {
		defer close(c.done)
		caller, leave := context.WithTimeout(ctx, g.timeout)
		defer leave()
		r.caller = caller //nolint:fatcontext // used by this call only
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.timeout)
		defer cancel()
		defer context.AfterFunc(g.ctx, cancel)()
		c.protect(func() { c.result.Org, c.err = g.next.delete(ctx, r) })
	}) {
		return "", errClosed
	}
	select {
	case <-c.done:
		result, err := c.answer(false)
		return result.Org, err
	case <-ctx.Done():
		return "", &UnsettledError{ctx.Err()}
	}
}

// spawn runs f in the background, unless the group is closed.
func (g *group) spawn(f func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	open := g.ctx.Err() == nil
	if open {
		g.work.Go(f)
	}
	return open
}

// close waits for all calls, and cancels those that are not within the deadline of one caller.
func (g *group) close() {
	g.mu.Lock()
	g.cancel()
	for _, q := range g.queues {
		for _, c := range q.inFlight {
			if c.cancel != nil { // it has begun
				c.cancel()
			}
		}
	}
	g.mu.Unlock()
	g.work.Wait()
}
