package atlas

import "time"

// Clock is a TokenSource's clock. The zero Clock is the system's; tests have one that they can
// move.
type Clock struct {
	// Now is time.Now.
	Now func() time.Time
	// AfterFunc is time.AfterFunc: it runs f once, in another goroutine, after d. The function that
	// it returns keeps f from running, if it has not begun.
	AfterFunc func(d time.Duration, f func()) (stop func() bool)
}

func (c Clock) withDefaults() Clock {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.AfterFunc == nil {
		c.AfterFunc = func(d time.Duration, f func()) func() bool { return time.AfterFunc(d, f).Stop }
	}
	return c
}

// until is time.Until.
func (c Clock) until(t time.Time) time.Duration { return t.Sub(c.Now()) }
