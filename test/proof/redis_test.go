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

// TestFault61DeleteHereCreateThere: either order while they overlap; after the delete's answer
// never the old token.
func TestFault61DeleteHereCreateThere(t *testing.T) {
	t.Parallel()
	w := newWorld(t, setup{replicas: 2, orgs: 1, ttl: time.Minute, redis: redistest.Start(t), atlasTimeout: 3 * time.Second})
	jwt := []string{"authorization", "JWT " + w.jwts[0][0]}
	for _, transport := range []int{0, 1} {
		here, there := w.callers[0][transport], w.callers[1][1-transport]
		for _, hold := range []func(emulator.Operation) *emulator.Gate{w.atlas.Hold, w.atlas.HoldAnswer} {
			var old testutil.Outcome
			testutil.Eventually(t, func() bool {
				testutil.WantCreated.Check(t, here.Call(testutil.Context(t), testutil.Create, jwt...))
				old = there.Call(testutil.Context(t), testutil.Create, jwt...)
				return strings.Contains(old.Get("cache-status"), "; hit")
			}, "the replicas do not share what they remember")
			gate := hold(emulator.Delete)
			deleting := testutil.Async(testutil.Context(t), here, testutil.Delete, jwt...)
			if err := gate.Wait(testutil.Context(t), 1); err != nil {
				t.Fatal(err)
			}
			if got := there.Call(testutil.Context(t), testutil.Create, jwt...); got.Code != codes.OK || strings.Contains(got.Get("cache-status"), "hit") {
				t.Errorf("meanwhile: %v, cache-status %q", got.Code, got.Get("cache-status"))
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

// TestFault57Unsettled: a delete that cannot move the fence is not acknowledged while copies may be
// alive, and says so when its caller's time is up; a replica that can see them hands none out once
// the fence could be moved.
func TestFault57Unsettled(t *testing.T) {
	t.Parallel()
	for i, transport := range []string{"gRPC", "REST"} {
		t.Run(transport, func(t *testing.T) {
			w := newWorld(t, setup{replicas: 2, orgs: 1, ttl: time.Minute, redis: redistest.Start(t), atlasTimeout: 3 * time.Second})
			jwt := []string{"authorization", "JWT " + w.jwts[0][0]}
			cut, other := w.callers[0][i], w.callers[1][i]
			old := cut.Call(testutil.Context(t), testutil.Create, jwt...)
			testutil.WantCreated.Check(t, old)
			w.replicas[0].proxy.Cut()

			// Its time is that of every call here: when that of its own is up, a gRPC client
			// answers itself.
			got := cut.Call(testutil.Context(t), testutil.Delete, jwt...)
			testutil.Want{Code: codes.DeadlineExceeded, HTTP: 504, Reason: "DEADLINE_EXCEEDED", Metadata: map[string]string{"outcome": "unknown"}}.Check(t, got)
			if got := cut.Call(testutil.Context(t), testutil.Create, jwt...); got.Code != codes.OK || got.Token == old.Token || got.Get("cache-status") != "tokend; fwd=miss" {
				t.Errorf("a create of the replica that is cut off: %v, the old token: %v, cache-status %q", got.Code, got.Token == old.Token, got.Get("cache-status"))
			}
			if _, body := w.replicas[0].Get(t, "/readyz"); !strings.HasPrefix(body, "ready\nRedis: ") {
				t.Errorf("/readyz does not say that Redis cannot be reached: %q", body)
			}
			w.replicas[0].proxy.Restore()
			testutil.Eventually(t, func() bool {
				got := other.Call(testutil.Context(t), testutil.Create, jwt...)
				return got.Code == codes.OK && got.Token != old.Token
			}, "the other replica goes on handing out the old token")
		})
	}
}

// TestRedisInTrouble: no caller sees that Redis is down, hangs, is slow, loses its keys or has
// others.
func TestRedisInTrouble(t *testing.T) {
	for name, trouble := range map[string]func(*world) (end func()){
		"down":  func(w *world) func() { w.redis.Stop(); return w.redis.Restart },
		"hangs": func(w *world) func() { w.redis.Pause(); return w.redis.Resume },
		"slow":  func(w *world) func() { w.replicas[0].proxy.Delay(200 * time.Millisecond); return func() {} },
		"empty": func(w *world) func() { w.redis.Command("FLUSHALL"); return func() {} },
		"full":  func(w *world) func() { w.redis.Command("CONFIG", "SET", "maxmemory", "1"); return func() {} },
		"altered": func(w *world) func() {
			for key := range strings.FieldsSeq(w.redis.Command("KEYS", "*")) {
				w.redis.Command("SET", key, "nonsense")
			}
			return func() {}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, setup{replicas: 1, orgs: 1, ttl: time.Minute, redis: redistest.Start(t), atlasTimeout: 3 * time.Second})
			jwt := []string{"authorization", "JWT " + w.jwts[0][0]}
			for _, c := range w.callers[0] {
				testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, jwt...))
			}
			defer trouble(w)()
			for range 4 {
				for _, c := range w.callers[0] {
					got := c.Call(testutil.Context(t), testutil.Create, jwt...)
					if testutil.WantCreated.Check(t, got); got.Token != w.atlas.Org(0).EphemeralToken() {
						t.Error("another token than Atlas's")
					}
				}
			}
		})
	}
}
