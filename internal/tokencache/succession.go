package tokencache

import (
	"slices"
	"time"
)

// succession are the shared calls for one credential: those in flight, and the next, which callers join. It is guarded by
// group.mu.
type succession struct {
	key     key
	flights []*call   // in the order in which they left
	next    *call     // nil if nobody waits for it
	left    time.Time // when the last of them left
	landed  time.Time // when one last landed
	filling bool      // of the calls that could be answered from the cache, the last one was, or there was none yet

	timer *time.Timer // considers the next call again; nil until it is needed
	wakes time.Time   // when timer fires, if it has not

	room [maxInFlight]*call // of flights
}

func newSuccession(k key, filling bool) *succession {
	s := &succession{key: k, filling: filling}
	s.flights = s.room[:0]
	return s
}

// departure is what is known about when the next call may leave. There has to be one.
func (s *succession) departure(now time.Time, most int, latency time.Duration) departure {
	var room [maxInFlight]time.Duration
	flights := room[:0]
	for _, c := range s.flights {
		flights = append(flights, now.Sub(c.left))
	}
	return departure{
		most: most, flights: flights, since: now.Sub(s.left),
		waiters: s.next.waiters, gathered: min(now.Sub(s.next.came), now.Sub(s.landed)),
		latency: latency, filling: s.filling && !s.next.request.noCache,
	}
}

// depart takes the next call to those in flight. From now on nobody joins it.
func (s *succession) depart(now time.Time) *call {
	c := s.next
	s.next = nil
	c.left, s.left = now, now
	s.flights = append(s.flights, c)
	return c
}

// land takes a call that has ended from those in flight.
func (s *succession) land(c *call, now time.Time) {
	s.flights = slices.DeleteFunc(s.flights, func(other *call) bool { return other == c })
	s.landed = now
	switch {
	case c.err != nil || c.panics != nil:
	case c.result.Status.Hit:
		s.filling = true
	case !c.request.noCache:
		s.filling = false
	}
}

// wake has g reconsider the next call at a time, and not at another one that was named before.
func (s *succession) wake(at time.Time, g *group) {
	switch {
	case s.timer == nil:
		s.timer = time.AfterFunc(time.Until(at), func() { g.reconsider(s) })
	case !s.wakes.Equal(at):
		s.timer.Reset(time.Until(at))
	}
	s.wakes = at
}

// stop ends the timer.
func (s *succession) stop() {
	if s.timer != nil {
		s.timer.Stop()
	}
}
