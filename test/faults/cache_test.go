package faults

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
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// TestThousandCallersOneCredential: all of them cost Atlas two calls, the one in flight and the
// next. What a call takes is not known yet, so they do not overlap.
func TestThousandCallersOneCredential(t *testing.T) {
	t.Parallel()
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
	for i := range testutil.ManyCallers() {
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
		return strings.Contains(s.Metrics(t), fmt.Sprintf("tokend_cache_creates_waiting %d\n", testutil.ManyCallers()+1))
	}, "not all calls are in progress")
	gate.Release()
	testutil.WantCreated.Check(t, <-first)
	wg.Wait()
	if n := s.Atlas.Calls(emulator.Create); n != 2 {
		t.Errorf("%d calls of Atlas for %d callers, want 2", n, testutil.ManyCallers()+1)
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

// TestThousandCredentials: while Atlas does not answer for one, it answers for all others. Those
// who are refused because all come at once do as they are told, and come again.
func TestThousandCredentials(t *testing.T) {
	t.Parallel()
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
	for i := range testutil.ManyCallers() {
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
	t.Parallel()
	for _, mode := range []testutil.Security{testutil.Plaintext, testutil.ServerTLS, testutil.MutualTLS} {
		for _, transport := range []string{"gRPC", "REST"} {
			t.Run(string(mode)+"/"+transport, func(t *testing.T) {
				// A new one, which does not know how long a call takes: so the two share the one
				// that leaves when the first has landed.
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

// TestFault53DeleteSent: a delete that has been sent invalidates what is remembered, also if its
// caller does not wait.
func TestFault53DeleteSent(t *testing.T) {
	t.Parallel()
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

// TestCacheHeaders: what is remembered is said to be, a caller can do without it, and Atlas's
// refusal ends it.
func TestCacheHeaders(t *testing.T) {
	t.Parallel()
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
