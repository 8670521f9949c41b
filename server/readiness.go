package server

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
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
