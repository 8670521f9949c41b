package server

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/status"
)

// The states of a server. Calls should be sent to it only when it is ready.
const (
	stateReady    = "ready"
	stateStarting = "starting"
	stateDraining = "draining"
	// stateRefused: Atlas refuses every identity of the service, and callers may not bring their
	// own, so no call can succeed. Unlike an Atlas outage, which affects every replica, this may be
	// a wrong secret of this replica alone.
	stateRefused = "refused by Atlas"
)

// startInterval is the time between updates until the first logins have ended, so that a starting
// server becomes ready soon.
const startInterval = 10 * time.Millisecond

// readiness is the state of the server as /readyz and grpc.health.v1 report it.
type readiness struct {
	auth   *auth.Authenticator
	checks *checks
	health *health.Server

	mu    sync.Mutex
	state string // guarded by mu
}

func newReadiness(a *auth.Authenticator, c *checks) *readiness {
	r := &readiness{auth: a, checks: c, health: health.NewServer()}
	r.set(stateStarting)
	return r
}

func (r *readiness) get() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

// set changes the state, unless the server is draining, which is final.
func (r *readiness) set(state string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state == state || r.state == stateDraining {
		return
	}
	r.state = state
	status := healthpb.HealthCheckResponse_NOT_SERVING
	if state == stateReady {
		status = healthpb.HealthCheckResponse_SERVING
	}
	for _, name := range []string{"", ephemeraltokenv1.EphemeralTokenService_ServiceDesc.ServiceName} {
		r.health.SetServingStatus(name, status)
	}
}

// watch updates the state until ctx is done.
func (r *readiness) watch(ctx context.Context, interval time.Duration) error {
	tick := time.NewTicker(startInterval)
	defer tick.Stop()
	for {
		if r.get() != stateStarting {
			tick.Reset(interval)
		}
		select {
		case <-tick.C:
			r.look()
		case <-ctx.Done():
			return nil
		}
	}
}

func (r *readiness) look() {
	r.checks.get() // records when a check changes
	switch {
	case r.auth.Refused():
		r.set(stateRefused)
	case r.get() == stateStarting && r.auth.Starting():
	default:
		r.set(stateReady)
	}
}

// checks runs the checks of everything that calls depend on, and remembers how long each has been
// in its state. Call get regularly.
type checks struct {
	look func() []status.Check // without Since
	now  func() time.Time

	mu   sync.Mutex
	last map[string]status.Check // guarded by mu; by name
}

func newChecks(look func() []status.Check) *checks { return &checks{look: look, now: time.Now} }

// get runs the checks.
func (c *checks) get() []status.Check {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []status.Check
	next := map[string]status.Check{}
	for _, check := range c.look() {
		check.Since = c.now()
		if before, known := c.last[check.Name]; known && (before.Err == nil) == (check.Err == nil) {
			check.Since = before.Since
		}
		found, next[check.Name] = append(found, check), check
	}
	c.last = next
	return found
}
