package faults

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// TestFault53LastWaiter checks that a shared call ends with the last of its callers, not earlier.
func TestFault53LastWaiter(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		jwt := testutil.Credential(s.Atlas)
		gate := s.Atlas.Hold(emulator.Create)
		defer gate.Release()
		cancelled := func() int { return s.Atlas.Counters().Statuses[emulator.Create][0] }
		waiting := func(n string) func() bool {
			return func() bool { return strings.Contains(s.Metrics(t), "tokend_cache_creates_waiting "+n+"\n") }
		}
		first := testutil.Async(testutil.Context(t), c, testutil.Create, jwt...)
		if err := gate.Wait(testutil.Context(t), 1); err != nil {
			t.Fatal(err)
		}
		ctx2, cancel2 := context.WithCancel(t.Context())
		ctx3, cancel3 := context.WithCancel(t.Context())
		defer cancel3()
		// The latency is not known yet, so the two share the call that is sent after the first.
		second, third := testutil.Async(ctx2, c, testutil.Create, jwt...), testutil.Async(ctx3, c, testutil.Create, jwt...)
		testutil.Eventually(t, waiting("3"), "not all calls are in progress")
		gate.Pass(1)
		testutil.WantCreated.Check(t, <-first)
		if err := gate.Wait(testutil.Context(t), 1); err != nil {
			t.Fatal(err)
		}
		cancel2()
		<-second
		testutil.Eventually(t, waiting("1"), "the cancelled caller is still counted")
		if gate.Held() != 1 {
			t.Error("the call to Atlas ended with the first of its callers")
		}
		cancel3()
		<-third
		testutil.Eventually(t, func() bool { return cancelled() == 1 }, "the call to Atlas continues without callers")
	})
}

// TestFault53DeleteSent checks that a delete that has been sent invalidates the cache even if its
// caller has cancelled.
func TestFault53DeleteSent(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		jwt := testutil.Credential(s.Atlas)
		old := c.Call(testutil.Context(t), testutil.Create, jwt...)
		if again := c.Call(testutil.Context(t), testutil.Create, jwt...); !strings.HasPrefix(again.Get("cache-status"), "tokend; hit; ttl=") || again.Get("age") == "" {
			t.Fatalf("nothing is cached: %+v", again.Header)
		}
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
	}, testutil.WithTTL(time.Minute), func(c *server.Config, _ *atlas.Config) { c.Cache.SettleTime = 100 * time.Millisecond })
}

// TestCacheHeaders checks cache-status and age, no-cache requests, and that a 401 invalidates the
// cache.
func TestCacheHeaders(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		jwt := testutil.Credential(s.Atlas)
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
		s.Atlas.Inject(emulator.Fault{On: emulator.Create, Status: 401, Times: 1})
		if got := c.Call(testutil.Context(t), testutil.Create, append(jwt[:2:2], "cache-control", "no-cache")...); got.Reason != "CREDENTIAL_REJECTED" || got.Get("cache-status") != "tokend; fwd=request" {
			t.Errorf("%+v", got)
		}
		if got := c.Call(testutil.Context(t), testutil.Create, jwt...); got.Get("cache-status") != "tokend; fwd=miss" {
			t.Errorf("after a 401: cache-status %q", got.Get("cache-status"))
		}
	}, testutil.WithTTL(time.Minute))
}
