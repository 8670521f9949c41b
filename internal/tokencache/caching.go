package tokencache

import (
	"context"
	"sync"
	"time"
)

// caching is the layer that caches the answers of the next one.
type caching struct {
	store    store
	next     layer
	stale    bool          // a stale token may be returned if Atlas failed
	timeout  time.Duration // of a delete, which outlives its caller and so has its own deadline
	accepted *recent[struct{}]
	refusals *refusals

	ctx    context.Context // of deletes
	cancel context.CancelFunc
	mu     sync.Mutex
	closed bool           // guarded by mu
	work   sync.WaitGroup // added to under mu, while not closed
}

func newCaching(s store, next layer, cfg Config) *caching {
	c := &caching{
		store: s, next: next, stale: cfg.StaleIfError > 0, timeout: cfg.CallTimeout,
		accepted: newRecent[struct{}](cfg.MaxTokens), refusals: newRefusals(),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// create returns a cached token, or else the next layer's answer. If Atlas failed, a cached
// token comes with the error: group decides which waiter may have it.
func (c *caching) create(ctx context.Context, r request) (Result, error) {
	found, v := c.store.get(ctx, r)
	defer c.store.release(v)
	if found.usable() && !r.noCache {
		return found.result(), nil
	}
	call := c.refusals.begin(r.key)
	defer c.refusals.end(call)
	result, err := c.next.create(ctx, r)
	switch {
	case isRefusal(err):
		c.forget(ctx, r)
	case err != nil && c.stale && isFailure(err):
		// Read again: the token that was cached before the call may have been deleted since.
		if cached, ok := c.cached(context.WithoutCancel(ctx), r); ok {
			return cached, err
		}
	case err == nil:
		c.accepted.add(r.key, struct{}{})
		if result.Org != "" { // no org, no fence
			call.store(func(refused bool) {
				life := life(r)
				if refused {
					life = noLife
				}
				c.store.put(ctx, v, r, result.Token, life)
			})
		}
	}
	return result, err
}

// forget removes the credential's token from the cache, and keeps the answers of calls in flight
// out of it.
func (c *caching) forget(ctx context.Context, r request) {
	c.refusals.refuse(r.key)
	c.store.invalidate(ctx, r)
}

const (
	// unlimited is the life of a JWT without an exp.
	unlimited = 100 * 365 * 24 * time.Hour
	// noLife is over, however far two clocks drift apart during a call.
	noLife = -time.Minute
)

func life(r request) time.Duration {
	if expiry := r.cred.Claims().Expiry; !expiry.IsZero() {
		return time.Until(expiry)
	}
	return unlimited
}

func (c *caching) cached(ctx context.Context, r request) (Result, bool) {
	found, v := c.store.get(ctx, r)
	c.store.release(v)
	return found.result(), found.there()
}

// delete returns when its caller leaves. The delete itself ends then only if it has not been sent:
// the fence depends on its outcome.
func (c *caching) delete(ctx context.Context, r request) (string, error) {
	type ending struct {
		org    string
		err    error
		panics any
	}
	ended := make(chan ending, 1)
	if !c.spawn(func() {
		caller, leave := context.WithTimeout(ctx, c.timeout)
		r.caller = caller //nolint:fatcontext // that of this call alone
		defer leave()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.timeout)
		defer cancel()
		defer context.AfterFunc(c.ctx, cancel)()
		e := ending{panics: errGoexit}
		defer func() { ended <- e }()
		e.panics = protect(func() { e.org, e.err = c.deleteAndInvalidate(ctx, r) })
	}) {
		return "", errClosed
	}
	select {
	case e := <-ended:
		if e.panics != nil {
			panic(e.panics)
		}
		return e.org, e.err
	case <-ctx.Done():
		return "", &UnsettledError{ctx.Err()}
	}
}

func (c *caching) deleteAndInvalidate(ctx context.Context, r request) (org string, err error) {
	deletion := c.store.deletion(r.org())
	// A credential that Atlas has not accepted may be forged, and must not affect other callers.
	_, accepted := c.accepted.get(r.key)
	held := r.org() != "" && (r.cred.Profile != "" || accepted)
	if held {
		deletion.begin(ctx)
	}
	how := outcomeUnknown // if it panics
	defer func() {
		if how == outcomeDone || held {
			// Only the caller waits for copies to expire: without it there is nothing left to do.
			if unsettled := deletion.end(r.caller, how); err == nil {
				err = unsettled
			}
		}
		if isRefusal(err) || how == outcomeUnknown && !held {
			c.forget(ctx, r)
		}
	}()
	org, err = c.next.delete(ctx, r)
	if how = outcomeOf(err); how == outcomeDone {
		c.accepted.add(r.key, struct{}{})
	}
	return org, err
}

// spawn runs f in the background, unless the layer is closed.
func (c *caching) spawn(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.work.Go(f)
	}
	return !c.closed
}

// close cancels the deletes in progress and waits for them.
func (c *caching) close() {
	c.cancel()
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.work.Wait()
	c.store.close()
}

// refusals keeps answers out of the cache that are older than a refusal of their credential. Calls
// for one credential overlap, and a delete overlaps with them, so Atlas may refuse one call, and
// the answer to another, which it accepted before, may arrive after that.
type refusals struct {
	mu    sync.Mutex
	asked map[key]*asked // guarded by mu; only credentials with calls in flight
}

// asked is a credential with calls in flight.
type asked struct {
	calls int // guarded by refusals.mu

	storing sync.RWMutex // held for reading while an answer is stored
	refused int          // guarded by storing; the number of refusals since the first of the calls
}

// asking is one of these calls.
type asking struct {
	*asked

	key  key
	seen int // refusals when it began
}

func newRefusals() *refusals { return &refusals{asked: map[key]*asked{}} }

// begin is called before Atlas is.
func (s *refusals) begin(k key) asking {
	s.mu.Lock()
	a := s.asked[k]
	if a == nil {
		a = &asked{}
		s.asked[k] = a
	}
	a.calls++
	s.mu.Unlock()
	a.storing.RLock()
	defer a.storing.RUnlock()
	return asking{a, k, a.refused}
}

func (s *refusals) end(a asking) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a.calls--
	if a.calls == 0 {
		delete(s.asked, a.key)
	}
}

// store has f store the call's answer, with whether the credential was refused since the call
// began. A refusal waits meanwhile, so that it removes what is stored.
func (a asking) store(f func(refused bool)) {
	a.storing.RLock()
	defer a.storing.RUnlock()
	f(a.refused != a.seen)
}

// refuse notes that Atlas has refused a credential. After it, the answers of calls that began
// before are not stored.
func (s *refusals) refuse(k key) {
	s.mu.Lock()
	a := s.asked[k]
	s.mu.Unlock()
	if a == nil {
		return
	}
	a.storing.Lock()
	defer a.storing.Unlock()
	a.refused++
}
