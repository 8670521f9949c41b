package resilient

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

const (
	// maxWait is how long a call waits for a slot.
	maxWait = time.Second
	// placesPerSlot is how many calls may wait for each of the slots. Alone, a tenant has half of
	// the places.
	placesPerSlot = 8
	// unverifiedShare is the part of the slots that are always open to unverified JWTs, as 1/n.
	// Every new caller is among them, and would wait behind any number of known tenants otherwise.
	unverifiedShare = 4
)

// limiter bounds the calls at Atlas so that no tenant can take the slots of the others. It uses
// dynamic thresholds (Choudhury and Hahne, 1998): a tenant may have at most as many calls in flight
// as there are free slots. Alone it gets half of the slots, k greedy tenants get 1/(k+1) each, and
// there is always room for one more. The places of the waiting calls are shared by the same rule.
//
// A freed slot goes to the waiting tenant with the fewest calls in flight. Nothing is learned or
// tuned at run time.
type limiter struct {
	slots int

	mu        sync.Mutex
	tenants   map[atlas.Tenant]*tenant // guarded by mu; those with calls in flight or waiting
	queued    []*tenant                // guarded by mu; those with calls waiting
	inFlight  int                      // guarded by mu
	waiting   int                      // guarded by mu
	abandoned int                      // guarded by mu; calls that were in flight when the breaker opened
	epoch     int                      // guarded by mu; how often that has happened
	refused   uint64                   // guarded by mu
}

// tenant is one tenant's share of the limiter, which guards it.
type tenant struct {
	name     atlas.Tenant // zero: of all JWTs that Atlas has not accepted yet
	inFlight int
	reserved int       // this many calls in flight do not count
	waiters  []*waiter // in the order in which they came
}

// waiter is a call that waits for a slot.
type waiter struct {
	tenant *tenant
	since  time.Time
	done   chan struct{} // closed when it has a slot or gets none
	slot   *slot         // valid after done; nil: it gets none
}

// slot is the right to have one call at Atlas.
type slot struct {
	limiter *limiter
	tenant  *tenant
	epoch   int
}

func newLimiter(slots int) *limiter {
	return &limiter{slots: slots, tenants: map[atlas.Tenant]*tenant{}}
}

var errOverloaded = errors.New("concurrency limit reached")

// acquire waits for a slot until maxWait has passed or too little time is left before ctx's
// deadline.
func (l *limiter) acquire(ctx context.Context, op atlas.Operation, name atlas.Tenant) (*slot, error) {
	if err := ctx.Err(); err != nil {
		return nil, &atlas.Error{Op: op, Kind: atlas.KindCanceled, Err: err}
	}
	patience := maxWait
	if deadline, ok := ctx.Deadline(); ok {
		patience = min(patience, time.Until(deadline)-minAttemptTime)
	}
	overloaded := &atlas.Error{Op: op, Kind: atlas.KindOverloaded, RetryAfter: maxWait, Err: errOverloaded}
	got, w := l.enter(name, patience > 0)
	switch {
	case got != nil:
		return got, nil
	case w == nil:
		return nil, overloaded
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-w.done:
	case <-timer.C:
		l.leave(w, true)
	case <-ctx.Done():
		if got := l.leave(w, false); got != nil {
			got.release()
		}
		return nil, &atlas.Error{Op: op, Kind: atlas.KindCanceled, Err: ctx.Err()}
	}
	if w.slot == nil {
		return nil, overloaded
	}
	return w.slot, nil
}

// enter gives a call a slot, a place in its tenant's queue, or neither.
func (l *limiter) enter(name atlas.Tenant, mayWait bool) (*slot, *waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tenants[name]
	if t == nil {
		t = &tenant{name: name}
		if name == (atlas.Tenant{}) {
			t.reserved = l.slots / unverifiedShare
		}
		l.tenants[name] = t
	}
	if len(t.waiters) == 0 && t.load() < l.free() {
		return l.take(t), nil
	}
	if !mayWait || len(t.waiters) >= placesPerSlot*l.slots-l.waiting {
		l.refused++
		l.forget(t)
		return nil, nil
	}
	w := &waiter{tenant: t, since: time.Now(), done: make(chan struct{})}
	t.waiters = append(t.waiters, w)
	l.waiting++
	if len(t.waiters) == 1 {
		l.queued = append(l.queued, t)
	}
	return nil, w
}

// leave takes a call out of its tenant's queue. If it was given a slot meanwhile, leave returns
// that.
func (l *limiter) leave(w *waiter, refused bool) *slot {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-w.done:
		return w.slot
	default:
	}
	l.remove(w)
	l.forget(w.tenant)
	if refused {
		l.refused++
	}
	return nil
}

// release gives the slot back, and the free slots to waiting calls.
func (s *slot) release() {
	l := s.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.epoch != l.epoch {
		l.abandoned--
	} else {
		l.inFlight--
		s.tenant.inFlight--
		l.forget(s.tenant)
	}
	l.advance()
}

// abandon stops counting the calls in flight against their tenants, and refuses those that wait:
// Atlas is down, and once it is back, calls that still hang must not keep others out. Each ends
// when its own time is up. There are never more than twice as many calls at Atlas as slots.
func (l *limiter) abandon() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.epoch++
	l.abandoned += l.inFlight
	l.inFlight = 0
	for _, t := range l.tenants {
		for _, w := range t.waiters {
			close(w.done)
		}
	}
	clear(l.tenants)
	l.queued, l.waiting = nil, 0
}

// counts returns how many calls are at Atlas, how many wait to be, and how many were refused so
// far.
func (l *limiter) counts() (inFlight, waiting int, refused uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.inFlight + l.abandoned, l.waiting, l.refused
}

// free returns the number of free slots. The caller holds mu, as for all that follow.
func (l *limiter) free() int { return min(l.slots-l.inFlight, 2*l.slots-l.inFlight-l.abandoned) }

func (l *limiter) take(t *tenant) *slot {
	l.inFlight++
	t.inFlight++
	return &slot{limiter: l, tenant: t, epoch: l.epoch}
}

// advance gives the free slots to waiting calls. Where the tenant with the fewest calls in flight
// may not have one, no other may.
func (l *limiter) advance() {
	for len(l.queued) > 0 {
		t := slices.MinFunc(l.queued, (*tenant).compare)
		if t.load() >= l.free() {
			return
		}
		w := t.waiters[0]
		l.remove(w)
		w.slot = l.take(t)
		close(w.done)
	}
}

// remove takes a call out of its tenant's queue.
func (l *limiter) remove(w *waiter) {
	t := w.tenant
	i := slices.Index(t.waiters, w) // 0, unless w leaves
	t.waiters = slices.Delete(t.waiters, i, i+1)
	l.waiting--
	if len(t.waiters) == 0 {
		l.queued = slices.DeleteFunc(l.queued, func(other *tenant) bool { return other == t })
	}
}

// forget drops a tenant that has no calls.
func (l *limiter) forget(t *tenant) {
	if t.inFlight == 0 && len(t.waiters) == 0 {
		delete(l.tenants, t.name)
	}
}

// compare orders waiting tenants: the one with the fewest calls in flight first; of several, the
// one whose first call has waited longest.
func (t *tenant) compare(other *tenant) int {
	return cmp.Or(cmp.Compare(t.load(), other.load()), t.waiters[0].since.Compare(other.waiters[0].since))
}

// load returns the calls in flight that count when slots are shared.
func (t *tenant) load() int {
	if t.inFlight < t.reserved {
		return 0
	}
	return t.inFlight
}
