package server

import (
	"errors"
	"testing"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/status"
)

// TestChecksSince checks that a check's time changes with its state, not with its reason, and
// starts again when the check returns.
func TestChecksSince(t *testing.T) {
	var (
		now   = time.Unix(0, 0)
		found []status.Check
	)
	c := newChecks(func() []status.Check { return found })
	c.now = func() time.Time { return now }
	for second, step := range []struct {
		found []status.Check
		since int64
	}{
		{[]status.Check{{Name: "a"}}, 0},
		{[]status.Check{{Name: "a"}}, 0},
		{[]status.Check{{Name: "a", Err: errors.New("one")}}, 2},
		{[]status.Check{{Name: "a", Err: errors.New("another")}}, 2},
		{[]status.Check{{Name: "a"}}, 4},
		{nil, 0},
		{[]status.Check{{Name: "a"}}, 6},
	} {
		now, found = time.Unix(int64(second), 0), step.found
		for _, got := range c.get() {
			if got.Since.Unix() != step.since {
				t.Errorf("after %d s: since %d, want %d", second, got.Since.Unix(), step.since)
			}
		}
	}
}

// TestDrainingIsFinal checks that the periodic checks do not make a draining server ready again.
func TestDrainingIsFinal(t *testing.T) {
	r := newReadiness(auth.NewPassThrough(), newChecks(func() []status.Check { return nil }))
	for _, step := range []struct {
		what  func()
		state string
	}{
		{func() {}, stateStarting},
		{r.look, stateReady},
		{func() { r.set(stateDraining) }, stateDraining},
		{r.look, stateDraining},
	} {
		step.what()
		got, err := r.health.Check(t.Context(), &healthpb.HealthCheckRequest{})
		if serving := got.GetStatus() == healthpb.HealthCheckResponse_SERVING; err != nil || r.get() != step.state || serving != (step.state == stateReady) {
			t.Errorf("%s, to clients %v, %v; want %s", r.get(), got.GetStatus(), err, step.state)
		}
	}
}
