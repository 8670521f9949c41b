package tokencache

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// group is the layer that shares: it runs one create at a time for each credential. A caller that arrives while one runs
// waits for the next, together with all who arrive until that begins: nobody shares a call that began before he came.
type group struct {
	next    layer
	timeout time.Duration // of a call, which has a deadline of its own because it outlives each of its waiters
	stale   bool          // there may be a token for a waiter whose time is nearly up
	ctx     context.Context
	cancel  context.CancelFunc
	work    sync.WaitGroup
	waiting atomic.Int64

	mu    sync.Mutex
	calls map[key]*succession // guarded by mu; one for each credential with a call that runs
}

// succession is what follows a credential's call that runs.
type succession struct {
	next *call // guarded by group.mu; nil: nobody waits for it
}

// call is one shared create.
type call struct {
	request request // of the first waiter; fresh if anybody's is, guarded by group.mu until the call begins
	ctx     context.Context
	cancel  context.CancelFunc
	waiters int // guarded by group.mu; those who have not left

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
	g := &group{next: next, timeout: timeout, stale: stale, calls: map[key]*succession{}}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	return g
}

// create waits for the next call for r's credential. It runs in a context of its own, which ends when nobody waits for it any
// more.
func (g *group) create(ctx context.Context, r request) (Result, error) {
	if err := ctx.Err(); err != nil { // nothing is begun for a caller who has gone
		return Result{Status: Status{Forward: ForwardMiss}}, err
	}
	c, collapsed, err := g.join(r)
	if err != nil {
		return Result{}, err
	}
	if !sameCaller(c.request.cred, r.cred) { // two that look alike are not the same: nothing of one's is the other's
		g.leave(r.key, c)
		return g.next.create(ctx, r)
	}
	g.waiting.Add(1)
	defer g.waiting.Add(-1)
	nearlyUp, stop := g.nearlyUp(ctx, r)
	defer stop()
	for {
		select {
		case <-c.done:
			if c.panics != nil {
				panic(c.panics) // as it would in a call of one's own
			}
			result := c.result
			result.Status.Collapsed = collapsed && !result.Status.Hit
			return result, c.err
		case <-nearlyUp:
			if kept, ok := g.next.kept(ctx, r); ok {
				g.leave(r.key, c)
				return kept, nil
			}
			nearlyUp = nil // there is none: he waits for as long as he can
		case <-ctx.Done():
			g.leave(r.key, c)
			return Result{Status: Status{Forward: ForwardMiss, Collapsed: collapsed}}, ctx.Err()
		}
	}
}

// lastMoment is how long before a caller's deadline he is given a token that is kept for when Atlas fails, because an Atlas
// that hangs has failed: enough for a look in Redis and the way back. Of a short time it is a quarter.
const lastMoment = 150 * time.Millisecond

// nearlyUp fires at the last moment of ctx; never, if there is nothing to be given then.
func (g *group) nearlyUp(ctx context.Context, r request) (fires <-chan time.Time, stop func() bool) {
	deadline, ok := ctx.Deadline()
	if !ok || !g.stale || r.fresh {
		return nil, func() bool { return true }
	}
	left := time.Until(deadline)
	timer := time.NewTimer(left - min(lastMoment, left/4))
	return timer.C, timer.Stop
}

// join adds a waiter to the next call for r's credential.
func (g *group) join(r request) (c *call, collapsed bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ctx.Err() != nil {
		return nil, false, errClosed
	}
	s := g.calls[r.key]
	switch {
	case s == nil:
		c = newCall(r)
		s = &succession{}
		g.calls[r.key] = s
		g.work.Go(func() { g.run(s, c) })
	case s.next == nil:
		c = newCall(r)
		s.next = c
	default:
		c, collapsed = s.next, true
	}
	c.waiters++
	c.request.fresh = c.request.fresh || r.fresh
	return c, collapsed, nil
}

func newCall(r request) *call { return &call{request: r, done: make(chan struct{})} }

func (g *group) leave(k key, c *call) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c.waiters--
	if c.waiters > 0 {
		return
	}
	if s := g.calls[k]; s != nil && s.next == c {
		s.next = nil // it never begins
	}
	if c.cancel != nil {
		c.cancel()
	}
}

// run is one call. It ends whatever the layers below do, also if that ends the goroutine.
func (g *group) run(s *succession, c *call) {
	defer g.end(s, c)
	r := g.begin(c)
	defer c.cancel()
	c.panics = errGoexit
	c.panics = protect(func() { c.result, c.err = g.next.create(c.ctx, r) })
}

func (g *group) begin(c *call) request {
	g.mu.Lock()
	defer g.mu.Unlock()
	c.ctx, c.cancel = context.WithTimeout(g.ctx, g.timeout)
	if c.waiters == 0 { // they left before it began
		c.cancel()
	}
	return c.request
}

// end tells everybody who waits, and begins the next call.
func (g *group) end(s *succession, c *call) {
	g.mu.Lock()
	defer g.mu.Unlock()
	next := s.next
	s.next = nil
	if next == nil {
		delete(g.calls, c.request.key)
	} else {
		g.work.Go(func() { g.run(s, next) })
	}
	close(c.done)
}

// protect runs f and returns what it panics with, since a panic would end the process: nobody is above the goroutine of a
// shared call.
func protect(f func()) (panics any) {
	defer func() { panics = recover() }()
	f()
	return nil
}

// delete is nobody else's: a delete that another caller's stands for would be done before he asked for it, or twice.
func (g *group) delete(ctx context.Context, r request) (string, error) { return g.next.delete(ctx, r) }

func (g *group) kept(ctx context.Context, r request) (Result, bool) { return g.next.kept(ctx, r) }

// close ends every call and waits for it.
func (g *group) close() {
	g.mu.Lock()
	g.cancel()
	g.mu.Unlock()
	g.work.Wait()
}
