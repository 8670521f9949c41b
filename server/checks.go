package server

import (
	"sync"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
)

// check is how one thing is that calls depend on, as /readyz tells it.
type check struct {
	auth.Check
	since time.Time // for how long it has been well, or not
}

// checks remembers for how long each thing has been as it is. Somebody has to look from time to time.
type checks struct {
	look func() []auth.Check
	now  func() time.Time

	mu   sync.Mutex
	last map[string]check // guarded by mu; by name
}

func newChecks(look func() []auth.Check) *checks { return &checks{look: look, now: time.Now} }

// get looks at everything.
func (c *checks) get() []check {
	c.mu.Lock()
	defer c.mu.Unlock()
	found, now := []check{}, c.now()
	next := map[string]check{}
	for _, seen := range c.look() {
		present := check{seen, now}
		if before, known := c.last[seen.Name]; known && (before.Err == nil) == (seen.Err == nil) {
			present.since = before.since
		}
		found, next[seen.Name] = append(found, present), present
	}
	c.last = next
	return found
}
