package server

import (
	"sync"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/status"
)

// checks runs the checks of everything that calls depend on, and remembers how long each has been
// in its state. Call get regularly.
type checks struct {
	look func() []auth.Check
	now  func() time.Time

	mu   sync.Mutex
	last map[string]status.Check // guarded by mu; by name
}

func newChecks(look func() []auth.Check) *checks { return &checks{look: look, now: time.Now} }

// get runs the checks.
func (c *checks) get() []status.Check {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []status.Check
	next := map[string]status.Check{}
	for _, seen := range c.look() {
		check := status.Check{Name: seen.Name, Err: seen.Err, Since: c.now()}
		if before, known := c.last[check.Name]; known && (before.Err == nil) == (check.Err == nil) {
			check.Since = before.Since
		}
		found, next[check.Name] = append(found, check), check
	}
	c.last = next
	return found
}
