package proof

import (
	"slices"
	"sync"
	"time"
)

// stepClock is a clock that goes only when it is told to.
type stepClock struct {
	mu     sync.Mutex
	now    time.Time    // guarded by mu
	timers []*stepTimer // guarded by mu; those that have not fired
}

type stepTimer struct {
	at time.Time
	f  func()
}

func newStepClock() *stepClock { return &stepClock{now: time.Now()} }

func (c *stepClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// AfterFunc is time.AfterFunc.
func (c *stepClock) AfterFunc(d time.Duration, f func()) (stop func() bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	timer := &stepTimer{c.now.Add(d), f}
	c.timers = append(c.timers, timer)
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		before := len(c.timers)
		c.timers = slices.DeleteFunc(c.timers, func(other *stepTimer) bool { return other == timer })
		return len(c.timers) < before
	}
}

// advance moves the clock on, and starts what is due.
func (c *stepClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	c.timers = slices.DeleteFunc(c.timers, func(timer *stepTimer) bool {
		due := !timer.at.After(c.now)
		if due {
			go timer.f()
		}
		return due
	})
}

// every is every, by this clock.
func (c *stepClock) every(d time.Duration, end func(), turns ...func()) (stop func()) {
	var (
		mu      sync.Mutex
		n       int
		stopped bool
		next    func()
	)
	next = func() {
		mu.Lock()
		defer mu.Unlock()
		if !stopped {
			turns[n%len(turns)]()
			n++
			c.AfterFunc(d, next)
		}
	}
	next()
	return func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		end()
	}
}
