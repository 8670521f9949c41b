package server_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// TestThousandCallersOneCredential: all of them cost Atlas two calls, the one in flight and the next. What a call takes is not known
// yet, so they do not overlap.
func TestThousandCallersOneCredential(t *testing.T) {
	s := testutil.Start(t, testutil.Plaintext, func(_ *server.Config, a *atlas.Config) { a.Timeout = time.Minute })
	callers, jwt := s.CallerPool(t), testutil.Credential(s.Atlas)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	gate := s.Atlas.Hold(emulator.Create)
	defer gate.Release()
	first := testutil.Async(ctx, callers[0], testutil.Create, jwt...)
	if err := gate.Wait(ctx, 1); err != nil {
		t.Fatal(err)
	}
	var (
		wg        sync.WaitGroup
		collapsed sync.Map
	)
	for i := range testutil.ManyCallers {
		c := callers[i%len(callers)]
		wg.Go(func() {
			got := c.Call(ctx, testutil.Create, jwt...)
			if got.Code != codes.OK || got.Token == "" {
				t.Errorf("got %v %s", got.Code, got.Message)
			}
			collapsed.Store(i, got.Get("cache-status"))
		})
	}
	testutil.Eventually(t, func() bool {
		return strings.Contains(s.Metrics(t), fmt.Sprintf("tokend_cache_creates_waiting %d\n", testutil.ManyCallers+1))
	}, "not all calls are in progress")
	gate.Release()
	testutil.WantCreated.Check(t, <-first)
	wg.Wait()
	if n := s.Atlas.Calls(emulator.Create); n != 2 {
		t.Errorf("%d calls of Atlas for %d callers, want 2", n, testutil.ManyCallers+1)
	}
	alone := 0
	collapsed.Range(func(_, status any) bool {
		switch status {
		case "tokend; fwd=miss":
			alone++
		case "tokend; fwd=miss; collapsed":
		default:
			t.Errorf("cache-status is %q", status)
		}
		return true
	})
	if alone != 1 {
		t.Errorf("%d calls were not collapsed, want 1", alone)
	}
}

// TestThousandCredentials: while Atlas does not answer for one, it answers for all others. Those who are refused because all
// come at once do as they are told, and come again.
func TestThousandCredentials(t *testing.T) {
	s := testutil.Start(t, testutil.Plaintext, func(_ *server.Config, a *atlas.Config) { a.Timeout = time.Minute })
	callers := s.CallerPool(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s.Atlas.Inject(emulator.Fault{On: emulator.Create, Times: 1, Shape: emulator.Stall})
	gate := s.Atlas.HoldAnswer(emulator.Create)
	defer gate.Release()
	patience, leave := context.WithCancel(ctx)
	stuck := testutil.Async(patience, callers[0], testutil.Create, testutil.Credential(s.Atlas)...)
	if err := gate.Wait(ctx, 1); err != nil {
		t.Fatal(err)
	}
	gate.Release()
	var wg sync.WaitGroup
	for i := range testutil.ManyCallers {
		jwt := "JWT " + s.Atlas.Org(i%2).JWT() // another one each time
		c := callers[i%len(callers)]
		wg.Go(func() {
			got := c.Call(ctx, testutil.Create, "authorization", jwt)
			for got.Reason == "OVERLOADED" && got.Retry > 0 {
				<-time.After(got.Retry)
				got = c.Call(ctx, testutil.Create, "authorization", jwt)
			}
			if got.Code != codes.OK {
				t.Errorf("got %v %s", got.Code, got.Message)
			}
		})
	}
	wg.Wait()
	select {
	case got := <-stuck:
		t.Errorf("the stuck call got %v %s", got.Code, got.Message)
	default:
	}
	leave()
	<-stuck
}

// TestFault53LastWaiter: a shared call ends with the last of its callers, and not before.
func TestFault53LastWaiter(t *testing.T) {
	for _, mode := range []testutil.Security{testutil.Plaintext, testutil.ServerTLS, testutil.MutualTLS} {
		for _, transport := range []string{"gRPC", "REST"} {
			t.Run(string(mode)+"/"+transport, func(t *testing.T) {
				// A new one, which does not know how long a call takes: so the two share the one that leaves when the first has landed.
				s := testutil.Start(t, mode)
				lastWaiter(t, s, s.Callers(t)[transport])
			})
		}
	}
}

func lastWaiter(t *testing.T, s *testutil.Service, c testutil.Caller) {
	t.Helper()
	jwt := testutil.Credential(s.Atlas)
	gate := s.Atlas.Hold(emulator.Create)
	defer gate.Release()
	before := s.Atlas.Counters().Statuses[emulator.Create][0]
	first := testutil.Async(testutil.Context(t), c, testutil.Create, jwt...)
	if err := gate.Wait(testutil.Context(t), 1); err != nil {
		t.Fatal(err)
	}
	one, leaveOne := context.WithCancel(t.Context())
	two, leaveTwo := context.WithCancel(t.Context())
	defer leaveTwo()
	gone, stays := testutil.Async(one, c, testutil.Create, jwt...), testutil.Async(two, c, testutil.Create, jwt...)
	testutil.Eventually(t, func() bool { return strings.Contains(s.Metrics(t), "tokend_cache_creates_waiting 3\n") }, "not all calls are in progress")
	gate.Pass(1)
	testutil.WantCreated.Check(t, <-first)
	if err := gate.Wait(testutil.Context(t), 1); err != nil { // the flight of the two
		t.Fatal(err)
	}
	leaveOne()
	<-gone
	testutil.Eventually(t, func() bool { return strings.Contains(s.Metrics(t), "tokend_cache_creates_waiting 1\n") }, "the first of the two is still there")
	if gate.Held() != 1 {
		t.Error("the call to Atlas ended with the first of its callers")
	}
	leaveTwo()
	<-stays
	testutil.Eventually(t, func() bool { return s.Atlas.Counters().Statuses[emulator.Create][0] == before+1 }, "the call to Atlas goes on after its last caller has left")
}

// TestFault53DeleteSent: a delete that has been sent invalidates what is remembered, also if its caller does not wait.
func TestFault53DeleteSent(t *testing.T) {
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		jwt := testutil.Credential(s.Atlas)
		var old testutil.Outcome
		testutil.Eventually(t, func() bool {
			old = c.Call(testutil.Context(t), testutil.Create, jwt...)
			return strings.HasPrefix(old.Get("cache-status"), "tokend; hit; ttl=") && old.Get("age") != ""
		}, "nothing is remembered")
		gate := s.Atlas.HoldAnswer(emulator.Delete)
		defer gate.Release()
		ctx, cancel := context.WithCancel(t.Context())
		deleting := testutil.Async(ctx, c, testutil.Delete, jwt...)
		if err := gate.Wait(testutil.Context(t), 1); err != nil {
			t.Fatal(err)
		}
		cancel()
		<-deleting
		got := c.Call(testutil.Context(t), testutil.Create, jwt...)
		testutil.WantCreated.Check(t, got)
		if got.Token == old.Token || got.Get("cache-status") != "tokend; fwd=miss" {
			t.Errorf("after the delete: the same token: %v, cache-status %q", got.Token == old.Token, got.Get("cache-status"))
		}
	}, testutil.WithTTL(time.Minute), func(c *server.Config, _ *atlas.Config) {
		c.Cache.SettleTime = 100 * time.Millisecond // its outcome is not known here, and the next transport does not wait
	})
}

// TestCacheHeaders: what is remembered is said to be, a caller can do without it, and Atlas's refusal ends it.
func TestCacheHeaders(t *testing.T) {
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		jwt := []string{"authorization", "JWT " + s.Atlas.Org(0).JWT()}
		for _, step := range []struct{ control, status string }{
			{"", "tokend; fwd=miss"},
			{"max-age=0, No-Cache", "tokend; fwd=request"},
			{"no-cache-please", "tokend; hit; ttl="},
			{"", "tokend; hit; ttl="},
		} {
			headers := jwt
			if step.control != "" {
				headers = append(headers[:2:2], "cache-control", step.control)
			}
			got := c.Call(testutil.Context(t), testutil.Create, headers...)
			testutil.WantCreated.Check(t, got)
			if !strings.HasPrefix(got.Get("cache-status"), step.status) || (got.Get("age") != "") != strings.Contains(step.status, "hit") {
				t.Errorf("%q: cache-status %q, age %q", step.control, got.Get("cache-status"), got.Get("age"))
			}
		}
		remove := s.Atlas.Inject(emulator.Fault{On: emulator.Create, Status: 401, Times: 1})
		defer remove()
		if got := c.Call(testutil.Context(t), testutil.Create, append(jwt[:2:2], "cache-control", "no-cache")...); got.Reason != "CREDENTIAL_REJECTED" || got.Get("cache-status") != "tokend; fwd=request" {
			t.Errorf("%+v", got)
		}
		if got := c.Call(testutil.Context(t), testutil.Create, jwt...); got.Get("cache-status") != "tokend; fwd=miss" {
			t.Errorf("after a 401: cache-status %q", got.Get("cache-status"))
		}
	}, testutil.WithTTL(time.Minute))
}

// TestFault61DeleteHereCreateThere: either order while they overlap; after the delete's answer never the old token.
func TestFault61DeleteHereCreateThere(t *testing.T) {
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

// TestFault57Unsettled: a delete that cannot move the fence is not acknowledged while copies may be alive, and says so when
// its caller's time is up; a replica that can see them hands none out once the fence could be moved.
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

			// Its time is that of every call here: when that of its own is up, a gRPC client answers itself.
			got := cut.Call(testutil.Context(t), testutil.Delete, jwt...)
			testutil.Want{Code: codes.DeadlineExceeded, HTTP: 504, Reason: "DEADLINE_EXCEEDED", Metadata: map[string]string{"outcome": "unknown"}}.Check(t, got)
			if got := cut.Call(testutil.Context(t), testutil.Create, jwt...); got.Code != codes.OK || got.Token == old.Token || got.Get("cache-status") != "tokend; fwd=miss" {
				t.Errorf("a create of the replica that is cut off: %v, the old token: %v, cache-status %q", got.Code, got.Token == old.Token, got.Get("cache-status"))
			}
			if _, body := w.replicas[0].Get(t, "/readyz"); !strings.HasPrefix(body, "ready\nRedis: ") {
				t.Errorf("/readyz does not say that Redis cannot be reached: %q", body)
			}
			w.replicas[0].proxy.Mend()
			testutil.Eventually(t, func() bool {
				got := other.Call(testutil.Context(t), testutil.Create, jwt...)
				return got.Code == codes.OK && got.Token != old.Token
			}, "the other replica goes on handing out the old token")
		})
	}
}

// TestRedisInTrouble: no caller sees that Redis is down, hangs, is slow, loses its keys or has others.
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
