package tokencache

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// cacheLayer is the layer that caches the answers of the next one.
type cacheLayer struct {
	store    store
	next     *upstream
	stale    bool // a stale token may be returned if Atlas failed
	refusals *refusals
}

// create returns a cached token, or else the next layer's answer. If Atlas failed, a cached
// token comes with the error: group decides which waiter may have it.
func (c *cacheLayer) create(ctx context.Context, r request) (Result, error) {
	found, before := c.store.Get(ctx, r)
	defer c.store.Release(before)
	if found.Status.fresh() && !r.noCache {
		return found, nil
	}
	call := c.refusals.begin(r.key)
	defer c.refusals.end(call)
	result, err := c.next.create(ctx, r)
	switch {
	case isRefusal(err):
		c.forget(ctx, r)
	case err != nil && c.stale && isFailure(err):
		// Read again: the token that was cached before the call may have been deleted since.
		if found := c.cached(context.WithoutCancel(ctx), r); found.Status.Hit {
			return found, err
		}
	case err == nil && result.Org != "": // no org, no fence
		c.put(ctx, call, before, r, result.Token)
	}
	return result, err
}

// put stores the answer to a call. A refusal of the credential waits meanwhile, so that it removes
// what is stored.
func (c *cacheLayer) put(ctx context.Context, call *round, before snapshot, r request, token atlas.Token) {
	call.storing.RLock()
	defer call.storing.RUnlock()
	life := unlimited
	switch expiry := r.claims.Expiry; {
	case call.refused:
		life = expired
	case !expiry.IsZero():
		life = time.Until(expiry)
	}
	c.store.Put(ctx, before, r, token, life)
}

const (
	// unlimited is the life of a JWT without an exp.
	unlimited = 100 * 365 * 24 * time.Hour
	// expired is the life of a token that must not be cached. It is over however far two clocks
	// drift apart during a call.
	expired = -time.Minute
)

// forget removes the credential's token from the cache, and keeps the answers of calls in flight
// out of it.
func (c *cacheLayer) forget(ctx context.Context, r request) {
	c.refusals.refuse(r.key)
	c.store.Drop(ctx, r)
}

// cached returns a cached token, fresh or stale, or the zero Result.
func (c *cacheLayer) cached(ctx context.Context, r request) Result {
	found, before := c.store.Get(ctx, r)
	c.store.Release(before)
	return found
}

func (c *cacheLayer) delete(ctx context.Context, r request) (org string, err error) {
	hold := ""
	if r.claims.OrgID != "" && c.next.verified(r) { // a forged one must not affect other callers
		hold = rand.Text()
		c.store.Hold(r.claims.OrgID, hold)
	}
	how := outcomeUnknown // if it panics
	defer func() {
		if how == outcomeDone || hold != "" {
			// Only the caller waits for copies to expire: without it there is nothing left to do.
			if unsettled := c.store.Settle(r.caller, r.claims.OrgID, hold, how); err == nil && unsettled != nil {
				err = &UnsettledError{unsettled}
			}
		}
		if isRefusal(err) || how == outcomeUnknown && hold == "" {
			c.forget(ctx, r)
		}
	}()
	org, err = c.next.delete(ctx, r)
	how = outcomeOf(err)
	return org, err
}

// refusals keeps answers out of the cache that are older than a refusal of their credential. Calls
// for one credential overlap, and a delete overlaps with them, so Atlas may refuse one call, and
// the answer to another, which it accepted before, may arrive after that.
type refusals struct {
	mu     sync.Mutex
	rounds map[key]*round // guarded by mu; only credentials with calls in flight
}

// round is the calls for one credential that began between two refusals.
type round struct {
	key   key
	calls int // guarded by refusals.mu; those in flight

	storing sync.RWMutex // held for reading while an answer is stored
	refused bool         // guarded by storing; the credential was refused after the calls began
}

func newRefusals() *refusals { return &refusals{rounds: map[key]*round{}} }

// begin is called before Atlas is.
func (s *refusals) begin(k key) *round {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rounds[k]
	if r == nil {
		r = &round{key: k}
		s.rounds[k] = r
	}
	r.calls++
	return r
}

func (s *refusals) end(r *round) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.calls--
	if r.calls == 0 && s.rounds[r.key] == r {
		delete(s.rounds, r.key)
	}
}

// refuse notes that Atlas has refused a credential. After it, the answers of calls that began
// before are not stored.
func (s *refusals) refuse(k key) {
	s.mu.Lock()
	r := s.rounds[k]
	delete(s.rounds, k)
	s.mu.Unlock()
	if r != nil {
		r.storing.Lock()
		defer r.storing.Unlock()
		r.refused = true
	}
}
