package tokencache

import "time"

const (
	// maxInFlight bounds the shared calls in flight for one credential.
	maxInFlight = 4
	// minSpacing keeps calls from overlapping where Atlas answers in a millisecond or two.
	minSpacing = 2 * time.Millisecond
)

// queue holds the shared calls for one credential: those in flight, and the next one, which callers
// join until it is sent. It is guarded by group.mu.
type queue struct {
	key      key
	next     *call // nil if no caller waits for it
	inFlight int
	sent     time.Time   // when the last call was sent
	timer    *time.Timer // sends the next call; nil if it is not set
}

// pacing is what decides when the next call of a queue is sent.
type pacing struct {
	inFlight int
	latency  time.Duration // what a call to Atlas takes; 0 if it is not known yet
	caches   bool          // the answer of a call in flight will be cached, and answers the waiters
}

// wait returns how long after the last call the next one may be sent. It is false if a call has to
// finish first.
//
// Overlapping calls keep the wait short: under load a caller waits for little more than one call,
// and not for the rest of the call before as well. If the answer of the call in flight will be
// cached, a second call is only worth its cost when the first one is late.
func (p pacing) wait() (time.Duration, bool) {
	switch {
	case p.inFlight == 0:
		return 0, true
	case p.inFlight >= maxInFlight || p.latency == 0:
		return 0, false
	case p.caches:
		return max(2*p.latency, minSpacing), true
	}
	return max(p.latency/maxInFlight, minSpacing), true
}
