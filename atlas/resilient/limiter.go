package resilient

import (
	"container/heap"
	"container/list"
	"context"
	"errors"
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
	queue     tenantQueue              // guarded by mu; those with waiting calls
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
	waiters  list.List // of *waiter, in the order in which they came
	index    int       // in tenantQueue
}

// waiter is a call that waits for a slot.
type waiter struct {
	tenant *tenant
	place  *list.Element // in the tenant's queue
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
	if t.waiters.Len() == 0 && t.load() < l.free() {
		return l.take(t), nil
	}
	if !mayWait || t.waiters.Len() >= placesPerSlot*l.slots-l.waiting {
		l.refused++
		l.forget(t)
		return nil, nil
	}
	w := &waiter{tenant: t, since: time.Now(), done: make(chan struct{})}
	w.place = t.waiters.PushBack(w)
	l.waiting++
	if t.waiters.Len() == 1 {
		heap.Push(&l.queue, t)
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
		l.moved(s.tenant)
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
		for place := t.waiters.Front(); place != nil; place = place.Next() {
			close(place.Value.(*waiter).done)
		}
	}
	clear(l.tenants)
	l.queue, l.waiting = nil, 0
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
	l.moved(t)
	return &slot{limiter: l, tenant: t, epoch: l.epoch}
}

// advance gives the free slots to waiting calls. Where the tenant with the fewest calls in flight
// may not have one, no other may.
func (l *limiter) advance() {
	for len(l.queue) > 0 && l.queue[0].load() < l.free() {
		t := l.queue[0]
		w := t.waiters.Front().Value.(*waiter)
		l.remove(w)
		w.slot = l.take(t)
		close(w.done)
	}
}

// remove takes a call out of its tenant's queue.
func (l *limiter) remove(w *waiter) {
	t := w.tenant
	t.waiters.Remove(w.place)
	l.waiting--
	if t.waiters.Len() == 0 {
		heap.Remove(&l.queue, t.index)
	} else {
		heap.Fix(&l.queue, t.index)
	}
}

// moved puts a waiting tenant in its place in the queue after its number of calls in flight has
// changed.
func (l *limiter) moved(t *tenant) {
	if t.waiters.Len() > 0 {
		heap.Fix(&l.queue, t.index)
	}
}

// forget drops a tenant that has no calls.
func (l *limiter) forget(t *tenant) {
	if t.inFlight == 0 && t.waiters.Len() == 0 {
		delete(l.tenants, t.name)
	}
}

// tenantQueue is a heap of tenants: the one with the fewest calls in flight first; of several, the
// one whose first call has waited longest.
type tenantQueue []*tenant

func (q tenantQueue) Len() int { return len(q) }

func (q tenantQueue) Less(i, j int) bool {
	if a, b := q[i].load(), q[j].load(); a != b {
		return a < b
	}
	return q[i].first().Before(q[j].first())
}

func (q tenantQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push implements heap.Interface.
func (q *tenantQueue) Push(t any) {
	t.(*tenant).index = len(*q)
	*q = append(*q, t.(*tenant))
}

// Pop implements heap.Interface.
func (q *tenantQueue) Pop() any {
	last := len(*q) - 1
	t := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return t
}

// load returns the calls in flight that count when slots are shared.
func (t *tenant) load() int {
	if t.inFlight < t.reserved {
		return 0
	}
	return t.inFlight
}

// first returns since when the tenant's first call has waited.
func (t *tenant) first() time.Time { return t.waiters.Front().Value.(*waiter).since }
