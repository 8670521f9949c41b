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
	timeout  time.Duration // of a delete, which has a deadline of its own because it outlives its caller
	accepted *recent[struct{}]
	refusals *refusals

	ctx    context.Context // of deletes
	cancel context.CancelFunc
	mu     sync.Mutex
	closed bool           // guarded by mu
	work   sync.WaitGroup // added to under mu, while not closed
}

func newCaching(s store, next layer, cfg Config) *caching {
	r := &caching{
		store: s, next: next, stale: cfg.StaleIfError > 0, timeout: cfg.CallTimeout,
		accepted: newRecent[struct{}](cfg.MaxTokens), refusals: newRefusals(),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// create returns a cached token; else the next layer's answer; else, if Atlas failed, a stale token.
func (m *caching) create(ctx context.Context, r request) (Result, error) {
	found, v := m.store.get(ctx, r)
	if found.usable() && !r.noCache {
		return found.result(), nil
	}
	call := m.refusals.begin(r.key)
	defer m.refusals.end(call)
	result, err := m.next.create(ctx, r)
	switch {
	case isRefusal(err):
		m.forget(ctx, r)
	case err != nil && m.stale && !r.noCache && isFailure(err):
		// Read again: the token that was cached before the call may have been deleted since.
		if kept, ok := m.kept(context.WithoutCancel(ctx), r); ok {
			return kept, nil
		}
	case err == nil:
		m.accepted.add(r.key, struct{}{})
		if result.Org != "" { // no org, no fence
			call.store(func(refused bool) {
				life := life(r)
				if refused {
					life = noLife
				}
				m.store.put(ctx, v, r, result.Token, life)
			})
		}
	}
	return result, err
}

// forget removes the credential's token from the cache, and has the answers of calls in flight not come into it.
func (m *caching) forget(ctx context.Context, r request) {
	m.refusals.refuse(r.key)
	m.store.invalidate(ctx, r)
}

const (
	// unlimited is the life of a JWT that does not say when it ends.
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

func (m *caching) kept(ctx context.Context, r request) (Result, bool) {
	found, _ := m.store.get(ctx, r)
	return found.result(), found.there()
}

// delete goes on after its caller has left, because the fence depends on its outcome.
func (m *caching) delete(ctx context.Context, r request) (string, error) {
	type ending struct {
		org    string
		err    error
		panics any
	}
	ended := make(chan ending, 1)
	if !m.spawn(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.timeout)
		defer cancel()
		defer context.AfterFunc(m.ctx, cancel)()
		e := ending{panics: errGoexit}
		defer func() { ended <- e }()
		e.panics = protect(func() { e.org, e.err = m.deleteAndInvalidate(ctx, r) })
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

func (m *caching) deleteAndInvalidate(ctx context.Context, r request) (org string, err error) {
	deletion := m.store.deletion(r.org())
	// A credential that Atlas has not accepted may be forged, and must not affect other callers.
	_, accepted := m.accepted.get(r.key)
	held := r.org() != "" && (r.cred.Profile != "" || accepted)
	if held {
		deletion.begin(ctx)
	}
	how := outcomeUnknown // unless it returns, as after a panic
	defer func() {
		if how == outcomeDone || held {
			if unsettled := deletion.end(ctx, how); err == nil {
				err = unsettled
			}
		}
		if isRefusal(err) || how == outcomeUnknown && !held {
			m.forget(ctx, r)
		}
	}()
	org, err = m.next.delete(ctx, r)
	if how = outcomeOf(err); how == outcomeDone {
		m.accepted.add(r.key, struct{}{})
	}
	return org, err
}

// spawn runs f in the background, unless the layer is closed.
func (m *caching) spawn(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.work.Go(f)
	}
	return !m.closed
}

// close ends the deletes in progress and waits for them.
func (m *caching) close() {
	m.cancel()
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.work.Wait()
	m.store.close()
}
