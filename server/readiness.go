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

// The states of a server. Only in the first should calls be sent to it.
const (
	stateReady    = "ready"
	stateStarting = "starting"
	stateDraining = "draining"
	// stateRefused: Atlas refuses every identity that the service holds, and nobody may bring one of his own, so no call can
	// succeed. It is the one trouble with Atlas that makes a replica unready: it may be this replica's alone, with a secret that
	// was mounted wrong. An Atlas that is down is every replica's, and taking all of them out would help nobody.
	stateRefused = "refused by Atlas"
)

// startInterval is the time between two looks until the first logins have ended, so that a server that could serve is not
// held up.
const startInterval = 10 * time.Millisecond

// readiness is whether new calls should be sent here, as /readyz and grpc.health.v1 say it.
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

// set changes the state, unless the server is draining: nothing comes after that.
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
		r.health.SetServingStatus(name, status) // those who watch are told
	}
}

// watch keeps the state up to date until ctx is done.
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
	r.checks.get() // so that it is known since when
	switch {
	case r.auth.Refused():
		r.set(stateRefused)
	case r.get() == stateStarting && r.auth.Starting():
	default:
		r.set(stateReady)
	}
}
