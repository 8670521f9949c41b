package testutil

import (
	"sync"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// Clock is time that stands still until a test moves it.
type Clock struct {
	mu     sync.Mutex
	now    time.Time
	timers []*timer // guarded by mu
}

type timer struct {
	at time.Time
	f  func()
}

// NewClock starts with a whole second, as exp is one.
func NewClock() *Clock { return &Clock{now: time.Now().Truncate(time.Second)} }

// TokenClock is the clock as the service has it; atlas's is off by skew.
func (c *Clock) TokenClock() atlas.Clock { return atlas.Clock{Now: c.Now, AfterFunc: c.afterFunc} }

// AtlasNow is the clock of an Atlas that is off by skew.
func (c *Clock) AtlasNow(skew time.Duration) func() time.Time {
	return func() time.Time { return c.Now().Add(skew) }
}

// Now is the time of the clock.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *Clock) afterFunc(d time.Duration, f func()) (stop func() bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	added := &timer{c.now.Add(d), f}
	c.timers = append(c.timers, added)
	return func() bool { return c.remove(added) }
}

func (c *Clock) remove(gone *timer) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, t := range c.timers {
		if t == gone {
			c.timers = append(c.timers[:i:i], c.timers[i+1:]...)
			return true
		}
	}
	return false
}

// Next is the time until the next timer, 0 if there is none.
func (c *Clock) Next() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.timers) == 0 {
		return 0
	}
	first := c.timers[0].at
	for _, t := range c.timers {
		if t.at.Before(first) {
			first = t.at
		}
	}
	return first.Sub(c.now)
}

// Advance moves time and runs what is due.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	c.now = c.now.Add(d)
	var due []*timer
	for _, t := range c.timers {
		if !t.at.After(c.now) {
			due = append(due, t)
		}
	}
	c.mu.Unlock()
	for _, t := range due {
		if c.remove(t) {
			go t.f()
		}
	}
}

// AdvanceLate moves time while every timer is late, as on a machine that was suspended.
func (c *Clock) AdvanceLate(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	for _, t := range c.timers {
		t.at = t.at.Add(d)
	}
}
