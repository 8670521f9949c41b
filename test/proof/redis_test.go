package proof

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
)

// TestFault61DeleteHereCreateThere checks that a create on one replica during a delete on another
// is not cached, and that no replica returns the old token after the delete.
func TestFault61DeleteHereCreateThere(t *testing.T) {
	t.Parallel()
	// With the budget, a busy machine does not count as a failed Redis.
	w := newWorld(t, setup{replicas: 2, orgs: 1, ttl: time.Minute, redis: redistest.Start(t), budget: time.Second, atlasTimeout: 3 * time.Second})
	jwt := []string{"authorization", "JWT " + w.jwts[0][0]}
	for _, transport := range []int{0, 1} {
		here, there := w.callers[0][transport], w.callers[1][1-transport]
		for _, hold := range []func(emulator.Operation) *emulator.Gate{w.atlas.Hold, w.atlas.HoldAnswer} {
			var old testutil.Outcome
			testutil.Eventually(t, func() bool {
				testutil.WantCreated.Check(t, here.Call(testutil.Context(t), testutil.Create, jwt...))
				old = there.Call(testutil.Context(t), testutil.Create, jwt...)
				return strings.Contains(old.Get("cache-status"), "; hit")
			}, "the replicas do not share tokens")
			gate := hold(emulator.Delete)
			deleting := testutil.Async(testutil.Context(t), here, testutil.Delete, jwt...)
			if err := gate.Wait(testutil.Context(t), 1); err != nil {
				t.Fatal(err)
			}
			if got := there.Call(testutil.Context(t), testutil.Create, jwt...); got.Code != codes.OK || strings.Contains(got.Get("cache-status"), "hit") {
				t.Errorf("during the delete: %v, cache-status %q", got.Code, got.Get("cache-status"))
			}
			gate.Release()
			testutil.WantDeleted.Check(t, <-deleting)
			for _, c := range []testutil.Caller{here, there} {
				if got := c.Call(testutil.Context(t), testutil.Create, jwt...); got.Code != codes.OK || got.Token == old.Token {
					t.Errorf("after the delete: %v, the old token: %v", got.Code, got.Token == old.Token)
				}
			}
		}
	}
}

// TestFault57Unsettled checks that a delete that cannot move the fence in Redis is not acknowledged
// before its deadline.
func TestFault57Unsettled(t *testing.T) {
	t.Parallel()
	w := newWorld(t, setup{replicas: 1, orgs: 1, ttl: time.Minute, redis: redistest.Start(t), atlasTimeout: 3 * time.Second})
	jwt := []string{"authorization", "JWT " + w.jwts[0][0]}
	rest := w.callers[0][1]
	old := rest.Call(testutil.Context(t), testutil.Create, jwt...)
	testutil.WantCreated.Check(t, old)
	w.replicas[0].proxy.Cut()
	unknown := testutil.Want{Code: codes.DeadlineExceeded, HTTP: 504, Reason: "DEADLINE_EXCEEDED", Metadata: map[string]string{"outcome": "unknown"}}
	unknown.Check(t, rest.Call(testutil.Context(t), testutil.Delete, jwt...))
	if got := rest.Call(testutil.Context(t), testutil.Create, jwt...); got.Code != codes.OK || got.Token == old.Token || got.Get("cache-status") != "tokend; fwd=miss" {
		t.Errorf("after the delete: %v, the old token: %v, cache-status %q", got.Code, got.Token == old.Token, got.Get("cache-status"))
	}
	if _, body := w.replicas[0].Get(t, "/readyz"); !strings.HasPrefix(body, "ready\nRedis: ") {
		t.Errorf("/readyz does not report Redis: %q", body)
	}
}
