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
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// remembering makes a server remember tokens for so long.
func remembering(ttl time.Duration) func(*server.Config, *atlas.Config) {
	return func(c *server.Config, _ *atlas.Config) { c.Cache = tokencache.Config{TTL: ttl} }
}

// metrics is what /metrics says.
func (s *service) metrics(t *testing.T) string {
	t.Helper()
	_, body := s.get(t, "/metrics")
	return body
}

// started runs a call in the background.
func started(ctx context.Context, c caller, op operation, headers ...string) <-chan outcome {
	done := make(chan outcome, 1)
	go func() { done <- c.call(ctx, op, headers...) }()
	return done
}

// callerPool is enough callers for a thousand calls at once, half of them over gRPC, where a connection has 100 at most.
func (s *service) callerPool(t *testing.T) []caller {
	t.Helper()
	var all []caller
	rest := s.restCaller(t)
	for range manyCallers/100 + 1 {
		all = append(all, s.grpcCaller(t), rest)
	}
	return all
}

// TestThousandCallersOneCredential: all of them cost Atlas two calls, the one in flight and the next. What a call takes is not known
// yet, so they do not overlap.
func TestThousandCallersOneCredential(t *testing.T) {
	s := startService(t, plaintext, func(_ *server.Config, a *atlas.Config) { a.Timeout = time.Minute })
	callers, jwt := s.callerPool(t), credential(s.atlas)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	gate := s.atlas.Hold(emulator.Create)
	defer gate.Release()
	first := started(ctx, callers[0], create, jwt...)
	if err := gate.Wait(ctx, 1); err != nil {
		t.Fatal(err)
	}
	var (
		wg        sync.WaitGroup
		collapsed sync.Map
	)
	for i := range manyCallers {
		c := callers[i%len(callers)]
		wg.Go(func() {
			got := c.call(ctx, create, jwt...)
			if got.Code != codes.OK || got.Token == "" {
				t.Errorf("got %v %s", got.Code, got.Message)
			}
			collapsed.Store(i, got.header("cache-status"))
		})
	}
	eventually(t, func() bool {
		return strings.Contains(s.metrics(t), fmt.Sprintf("tokend_cache_creates_waiting %d\n", manyCallers+1))
	}, "not all calls are in progress")
	gate.Release()
	wantCreated.check(t, <-first)
	wg.Wait()
	if n := s.atlas.Calls(emulator.Create); n != 2 {
		t.Errorf("%d calls of Atlas for %d callers, want 2", n, manyCallers+1)
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
	s := startService(t, plaintext, func(_ *server.Config, a *atlas.Config) { a.Timeout = time.Minute })
	callers := s.callerPool(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s.atlas.Inject(emulator.Fault{On: emulator.Create, Times: 1, Shape: emulator.Stall})
	gate := s.atlas.HoldAnswer(emulator.Create)
	defer gate.Release()
	patience, leave := context.WithCancel(ctx)
	stuck := started(patience, callers[0], create, credential(s.atlas)...)
	if err := gate.Wait(ctx, 1); err != nil {
		t.Fatal(err)
	}
	gate.Release()
	var wg sync.WaitGroup
	for i := range manyCallers {
		jwt := "JWT " + s.atlas.Org(i%2).JWT() // another one each time
		c := callers[i%len(callers)]
		wg.Go(func() {
			got := c.call(ctx, create, "authorization", jwt)
			for got.Reason == "OVERLOADED" && got.Retry > 0 {
				<-time.After(got.Retry)
				got = c.call(ctx, create, "authorization", jwt)
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
	for _, mode := range []security{plaintext, serverTLS, mutualTLS} {
		for _, transport := range []string{"gRPC", "REST"} {
			t.Run(string(mode)+"/"+transport, func(t *testing.T) {
				// A new one, which does not know how long a call takes: so the two share the one that leaves when the first has landed.
				s := startService(t, mode)
				lastWaiter(t, s, s.callers(t)[transport])
			})
		}
	}
}

func lastWaiter(t *testing.T, s *service, c caller) {
	t.Helper()
	jwt := credential(s.atlas)
	gate := s.atlas.Hold(emulator.Create)
	defer gate.Release()
	before := s.atlas.Counters().Statuses[emulator.Create][0]
	first := started(testContext(t), c, create, jwt...)
	if err := gate.Wait(testContext(t), 1); err != nil {
		t.Fatal(err)
	}
	one, leaveOne := context.WithCancel(t.Context())
	two, leaveTwo := context.WithCancel(t.Context())
	defer leaveTwo()
	gone, stays := started(one, c, create, jwt...), started(two, c, create, jwt...)
	eventually(t, func() bool { return strings.Contains(s.metrics(t), "tokend_cache_creates_waiting 3\n") }, "not all calls are in progress")
	gate.Pass(1)
	wantCreated.check(t, <-first)
	if err := gate.Wait(testContext(t), 1); err != nil { // the flight of the two
		t.Fatal(err)
	}
	leaveOne()
	<-gone
	eventually(t, func() bool { return strings.Contains(s.metrics(t), "tokend_cache_creates_waiting 1\n") }, "the first of the two is still there")
	if gate.Held() != 1 {
		t.Error("the call to Atlas ended with the first of its callers")
	}
	leaveTwo()
	<-stays
	eventually(t, func() bool { return s.atlas.Counters().Statuses[emulator.Create][0] == before+1 }, "the call to Atlas goes on after its last caller has left")
}

// TestFault53DeleteSent: a delete that has been sent invalidates what is remembered, also if its caller does not wait.
func TestFault53DeleteSent(t *testing.T) {
	matrix(t, func(t *testing.T, s *service, c caller) {
		jwt := credential(s.atlas)
		var old outcome
		eventually(t, func() bool {
			old = c.call(testContext(t), create, jwt...)
			return strings.HasPrefix(old.header("cache-status"), "tokend; hit; ttl=") && old.header("age") != ""
		}, "nothing is remembered")
		gate := s.atlas.HoldAnswer(emulator.Delete)
		defer gate.Release()
		ctx, cancel := context.WithCancel(t.Context())
		deleting := started(ctx, c, remove, jwt...)
		if err := gate.Wait(testContext(t), 1); err != nil {
			t.Fatal(err)
		}
		cancel()
		<-deleting
		got := c.call(testContext(t), create, jwt...)
		wantCreated.check(t, got)
		if got.Token == old.Token || got.header("cache-status") != "tokend; fwd=miss" {
			t.Errorf("after the delete: the same token: %v, cache-status %q", got.Token == old.Token, got.header("cache-status"))
		}
	}, remembering(time.Minute), func(c *server.Config, _ *atlas.Config) {
		c.Cache.SettleTime = 100 * time.Millisecond // its outcome is not known here, and the next transport does not wait
	})
}

// TestCacheHeaders: what is remembered is said to be, a caller can do without it, and Atlas's refusal ends it.
func TestCacheHeaders(t *testing.T) {
	matrix(t, func(t *testing.T, s *service, c caller) {
		jwt := []string{"authorization", "JWT " + s.atlas.Org(0).JWT()}
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
			got := c.call(testContext(t), create, headers...)
			wantCreated.check(t, got)
			if !strings.HasPrefix(got.header("cache-status"), step.status) || (got.header("age") != "") != strings.Contains(step.status, "hit") {
				t.Errorf("%q: cache-status %q, age %q", step.control, got.header("cache-status"), got.header("age"))
			}
		}
		remove := s.atlas.Inject(emulator.Fault{On: emulator.Create, Status: 401, Times: 1})
		defer remove()
		if got := c.call(testContext(t), create, append(jwt[:2:2], "cache-control", "no-cache")...); got.Reason != "CREDENTIAL_REJECTED" || got.header("cache-status") != "tokend; fwd=request" {
			t.Errorf("%+v", got)
		}
		if got := c.call(testContext(t), create, jwt...); got.header("cache-status") != "tokend; fwd=miss" {
			t.Errorf("after a 401: cache-status %q", got.header("cache-status"))
		}
	}, remembering(time.Minute))
}

// TestFault61DeleteHereCreateThere: either order while they overlap; after the delete's answer never the old token.
func TestFault61DeleteHereCreateThere(t *testing.T) {
	w := newWorld(t, setup{replicas: 2, orgs: 1, ttl: time.Minute, redis: redistest.Start(t), atlasTimeout: 3 * time.Second})
	jwt := []string{"authorization", "JWT " + w.jwts[0][0]}
	for _, transport := range []int{0, 1} {
		here, there := w.callers[0][transport], w.callers[1][1-transport]
		for _, hold := range []func(emulator.Operation) *emulator.Gate{w.atlas.Hold, w.atlas.HoldAnswer} {
			var old outcome
			eventually(t, func() bool {
				wantCreated.check(t, here.call(testContext(t), create, jwt...))
				old = there.call(testContext(t), create, jwt...)
				return strings.Contains(old.header("cache-status"), "; hit")
			}, "the replicas do not share what they remember")
			gate := hold(emulator.Delete)
			deleting := started(testContext(t), here, remove, jwt...)
			if err := gate.Wait(testContext(t), 1); err != nil {
				t.Fatal(err)
			}
			if got := there.call(testContext(t), create, jwt...); got.Code != codes.OK || strings.Contains(got.header("cache-status"), "hit") {
				t.Errorf("meanwhile: %v, cache-status %q", got.Code, got.header("cache-status"))
			}
			gate.Release()
			wantDeleted.check(t, <-deleting)
			for _, c := range []caller{here, there} {
				if got := c.call(testContext(t), create, jwt...); got.Code != codes.OK || got.Token == old.Token {
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
			old := cut.call(testContext(t), create, jwt...)
			wantCreated.check(t, old)
			w.replicas[0].proxy.Cut()

			// Its time is that of every call here: when that of its own is up, a gRPC client answers itself.
			got := cut.call(testContext(t), remove, jwt...)
			want{code: codes.DeadlineExceeded, http: 504, reason: "DEADLINE_EXCEEDED", meta: map[string]string{"outcome": "unknown"}}.check(t, got)
			if got := cut.call(testContext(t), create, jwt...); got.Code != codes.OK || got.Token == old.Token || got.header("cache-status") != "tokend; fwd=miss" {
				t.Errorf("a create of the replica that is cut off: %v, the old token: %v, cache-status %q", got.Code, got.Token == old.Token, got.header("cache-status"))
			}
			if _, body := w.replicas[0].get(t, "/readyz"); !strings.HasPrefix(body, "ready\nRedis: ") {
				t.Errorf("/readyz does not say that Redis cannot be reached: %q", body)
			}
			w.replicas[0].proxy.Mend()
			eventually(t, func() bool {
				got := other.call(testContext(t), create, jwt...)
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
				wantCreated.check(t, c.call(testContext(t), create, jwt...))
			}
			defer trouble(w)()
			for range 4 {
				for _, c := range w.callers[0] {
					got := c.call(testContext(t), create, jwt...)
					if wantCreated.check(t, got); got.Token != w.atlas.Org(0).EphemeralToken() {
						t.Error("another token than Atlas's")
					}
				}
			}
		})
	}
}
