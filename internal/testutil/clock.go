package testutil

import (
	"slices"
	"sync"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// Clock is a clock that only a test advances.
type Clock struct {
	mu     sync.Mutex
	now    time.Time // guarded by mu
	timers []*timer  // guarded by mu; those that have not fired
}

type timer struct {
	at time.Time
	f  func()
}

// NewClock returns a clock that shows the current time in whole seconds, as JWTs have it.
func NewClock() *Clock { return &Clock{now: time.Now().Truncate(time.Second)} }

// IdentityClock returns the clock as an atlas.Identity takes it.
func (c *Clock) IdentityClock() atlas.Clock { return atlas.Clock{Now: c.Now, AfterFunc: c.AfterFunc} }

// Now is time.Now.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// AfterFunc is time.AfterFunc.
func (c *Clock) AfterFunc(d time.Duration, f func()) (stop func() bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	added := &timer{c.now.Add(d), f}
	c.timers = append(c.timers, added)
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		before := len(c.timers)
		c.timers = slices.DeleteFunc(c.timers, func(t *timer) bool { return t == added })
		return len(c.timers) < before
	}
}

// Advance moves the clock and starts what is due.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	c.timers = slices.DeleteFunc(c.timers, func(t *timer) bool {
		due := !t.at.After(c.now)
		if due {
			go t.f()
		}
		return due
	})
}
