package resilient

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

const (
	// queueMost is how many calls may wait for a slot, for a burst that Atlas is up to, and that it has done in burstTime: who
	// is refused in the end should not have waited for it. While there are more calls than Atlas is up to, a queue makes every
	// call late and none faster, so it is kept to this share of the limit, which is enough to leave no slot empty.
	queueMost  = 512
	burstTime  = 250 * time.Millisecond
	queueShare = 32
	// overloadTime is for how long after a refusal there are taken to be too many calls.
	overloadTime = time.Second
	// Callers who come back as soon as they are refused make it look so for good, even if there are no more of them than a queue
	// has room for. So the queue is let grow again after firstRelent, and if that was wrong, after twice as long, up to lastRelent.
	firstRelent = 10 * time.Second
	lastRelent  = 2 * time.Minute
	// Nobody waits for longer than maxPatience, nor, while there are too many calls, for longer than half of what an answer
	// takes or minPatience.
	maxPatience = time.Second
	minPatience = 25 * time.Millisecond
)

// limiter bounds the calls that are at Atlas at a time, by what Atlas can do (limit.go), and lets a few wait.
type limiter struct {
	most int

	mu         sync.Mutex
	limit      *limit        // guarded by mu
	generation uint64        // guarded by mu
	inFlight   int           // guarded by mu; of this generation
	writtenOff int           // guarded by mu; of those before
	queue      *list.List    // guarded by mu; of *waiter, the oldest first
	overloaded time.Time     // guarded by mu; until when the queue is kept short
	relentAt   time.Time     // guarded by mu; when it is let grow again, come what may
	relent     time.Duration // guarded by mu; how long that is after it was first kept short
	refused    uint64        // guarded by mu
}

// waiter is a call that waits for a slot.
type waiter struct {
	since time.Time
	done  chan struct{} // closed when it was taken out of the queue, rather than left
	slot  *slot         // valid after done; nil: it waited too long
}

// slot is the right to call Atlas.
type slot struct {
	limiter    *limiter
	generation uint64
	since      time.Time
}

func newLimiter(most int) *limiter {
	return &limiter{most: most, limit: newLimit(most), queue: list.New()}
}

var errOverloaded = errors.New("not asked, because it has as many calls as it can do in good time")

// acquire waits for a slot, unless too many wait already.
func (l *limiter) acquire(ctx context.Context, op atlas.Operation) (*slot, error) {
	if err := ctx.Err(); err != nil {
		return nil, &atlas.Error{Op: op, Kind: atlas.KindCanceled, Err: err}
	}
	got, place, w := l.enter(time.Now())
	if got != nil {
		return got, nil
	}
	overloaded := &atlas.Error{Op: op, Kind: atlas.KindOverloaded, Err: errOverloaded}
	if w == nil {
		return nil, overloaded
	}
	timer := time.NewTimer(maxPatience)
	defer timer.Stop()
	select {
	case <-w.done:
	case <-timer.C:
		l.leave(place, true)
	case <-ctx.Done():
		if got := l.leave(place, false); got != nil {
			got.release(false)
		}
		return nil, &atlas.Error{Op: op, Kind: atlas.KindCanceled, Err: ctx.Err()}
	}
	if w.slot == nil {
		return nil, overloaded
	}
	return w.slot, nil
}

// enter gives a call a slot, or a place in the queue, or neither.
func (l *limiter) enter(now time.Time) (*slot, *list.Element, *waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.queue.Len() == 0 && l.hasSlot() {
		return l.grant(now), nil, nil
	}
	if l.queue.Len() >= l.queueLimit(now) {
		l.refuse(now)
		return nil, nil, nil
	}
	w := &waiter{since: now, done: make(chan struct{})}
	return nil, l.queue.PushBack(w), w
}

// queueLimit is how many may wait. The caller holds mu.
func (l *limiter) queueLimit(now time.Time) int {
	switch {
	case now.Before(l.overloaded):
		return max(l.limit.now()/queueShare, 1)
	case l.limit.baseline == 0: // nobody knows yet
		return queueMost
	}
	inTime := time.Duration(l.limit.size) * burstTime / l.limit.baseline
	return int(min(inTime, queueMost))
}

// leave takes a waiter out of the queue. If it was given a slot meanwhile, that is returned.
func (l *limiter) leave(place *list.Element, refused bool) *slot {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := place.Value.(*waiter)
	select {
	case <-w.done:
		return w.slot
	default:
	}
	l.queue.Remove(place)
	if refused {
		l.refuse(time.Now())
	}
	return nil
}

func (l *limiter) refuse(now time.Time) {
	l.refused++
	if !now.Before(l.overloaded) { // it begins
		if relented := l.overloaded.Equal(l.relentAt); relented && now.Sub(l.relentAt) < l.relent {
			l.relent = min(2*l.relent, lastRelent)
		} else {
			l.relent = firstRelent
		}
		l.relentAt = now.Add(l.relent)
	}
	if l.overloaded = now.Add(overloadTime); l.overloaded.After(l.relentAt) {
		l.overloaded = l.relentAt
	}
}

// hasSlot reports whether there is a free slot. The caller holds mu, as for all that follow.
func (l *limiter) hasSlot() bool {
	return l.inFlight < l.limit.now() && l.inFlight+l.writtenOff < 2*l.most
}

func (l *limiter) grant(now time.Time) *slot {
	l.inFlight++
	if l.inFlight >= l.limit.now() {
		l.limit.fill(now)
	}
	return &slot{limiter: l, generation: l.generation, since: now}
}

// advance gives the free slots to those who wait.
func (l *limiter) advance(now time.Time) {
	if now.Before(l.overloaded) {
		patience := min(max(minPatience, l.limit.baseline/2), maxPatience)
		for oldest := l.queue.Front(); oldest != nil && now.Sub(oldest.Value.(*waiter).since) > patience; oldest = l.queue.Front() {
			l.refuse(now)
			close(l.queue.Remove(oldest).(*waiter).done)
		}
	}
	for l.queue.Len() > 0 && l.hasSlot() {
		w := l.queue.Remove(l.queue.Front()).(*waiter)
		w.slot = l.grant(now)
		close(w.done)
	}
}

// release gives the slot back. answered is whether it was an answer of Atlas that the call ended with.
func (s *slot) release(answered bool) {
	l := s.limiter
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.generation != l.generation {
		l.writtenOff--
	} else {
		l.inFlight--
		if answered {
			if l.limit.add(s.since, now) { // it was the limit that was too low, and not the calls that were too many
				l.overloaded, l.relentAt = time.Time{}, time.Time{}
			}
		}
		l.limit.settle(now, l.inFlight)
	}
	l.advance(now)
}

// writeOff takes the calls in flight for lost: Atlas is down, and once it is back, those that hang should not keep out
// others. Each ends when its own time is up, and there are never more of both than twice the most.
func (l *limiter) writeOff() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.generation++
	l.writtenOff += l.inFlight
	l.inFlight = 0
	l.advance(time.Now())
}

func (l *limiter) counts() (limit, inFlight, waiting int, refused uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.limit.now(), l.inFlight + l.writtenOff, l.queue.Len(), l.refused
}
