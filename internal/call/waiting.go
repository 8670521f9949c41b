package call

import (
	"sync"
	"time"
)

// Waiting are the calls whose message, or body, is on its way. They hold memory before anybody knows who calls, so there is an end
// of them: of their patience, and, when there are too many, of the one that has waited longest. Honest ones wait for milliseconds.
type Waiting struct {
	most     int
	patience time.Duration // 0: without end

	mu     sync.Mutex
	places places      // guarded by mu: the longest waiting first
	timer  *time.Timer // guarded by mu: for the first one's patience; nil while it does not run
	swept  int         // guarded by mu: how many have come since those that have ended by themselves were last looked for
}

// Waiter is a call that waits.
type Waiter interface {
	// End has it wait no longer. It must not block.
	End()
	// Err is not nil once it waits no longer because its caller has gone.
	Err() error
}

// Place is that of one call that waits. The zero Place is not taken.
type Place struct {
	waiter     Waiter // nil: not taken
	since      time.Time
	prev, next *Place
}

// NewWaiting has room for so many calls, each of which is ended when it has waited for longer than patience, unless that is 0.
func NewWaiting(most int, patience time.Duration) *Waiting {
	return &Waiting{most: most, patience: patience}
}

// Add begins a wait, in a place that has not been taken before. The call may be ended until Remove returns, and not after that.
func (w *Waiting) Add(p *Place, waiter Waiter) {
	p.waiter, p.since = waiter, time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.places.push(p)
	w.swept++
	if w.places.n > w.most {
		w.makeRoom()
	}
	if w.patience > 0 && w.timer == nil {
		w.timer = time.AfterFunc(w.patience, w.endLate)
	}
}

// Remove ends a wait, if it has not ended: it may be called twice.
func (w *Waiting) Remove(p *Place) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.places.remove(p)
}

// makeRoom gives up the places of those whose callers have gone, or else ends the one that has waited longest. The caller holds mu.
func (w *Waiting) makeRoom() {
	// It goes through all of them, so it does not for each that comes: not if there can be but a few.
	if w.swept >= w.most/4 {
		w.swept = 0
		for p := w.places.first; p != nil; {
			next := p.next
			if p.waiter.Err() != nil {
				w.places.remove(p)
			}
			p = next
		}
	}
	if first := w.places.first; w.places.n > w.most {
		first.waiter.End()
		w.places.remove(first)
	}
}

// endLate ends those whose patience is over.
func (w *Waiting) endLate() {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = nil
	for p := w.places.first; p != nil; p = w.places.first {
		if left := w.patience - now.Sub(p.since); left > 0 && p.waiter.Err() == nil {
			w.timer = time.AfterFunc(left, w.endLate)
			return
		}
		p.waiter.End()
		w.places.remove(p)
	}
}

// places is a list of those that are taken. It has no memory of its own, since each call is in one.
type places struct {
	first, last *Place
	n           int
}

func (l *places) push(p *Place) {
	if p.prev = l.last; p.prev != nil {
		p.prev.next = p
	} else {
		l.first = p
	}
	l.last = p
	l.n++
}

// remove does nothing with a place that is not taken.
func (l *places) remove(p *Place) {
	if p.waiter == nil {
		return
	}
	if p.prev != nil {
		p.prev.next = p.next
	} else {
		l.first = p.next
	}
	if p.next != nil {
		p.next.prev = p.prev
	} else {
		l.last = p.prev
	}
	*p = Place{}
	l.n--
}
