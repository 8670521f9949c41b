package faults

import (
	"fmt"
	"net/http"
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

// TestFault02StaleConnection checks that a closed idle connection is replaced without a retry.
func TestFault02StaleConnection(t *testing.T) {
	t.Parallel()
	testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
		em := v.StartAtlas(t, emulator.Config{HTTP1Only: true})
		s := v.StartWith(t, testutil.Plaintext, em)
		for _, c := range s.Callers(t) {
			testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(em)...))
			em.Inject(emulator.Fault{Times: 1, Drop: emulator.CloseConnection}) // the next request crosses the close
			testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(em)...))
		}
		if n := s.Resilient.Stats().Retries; n != 0 {
			t.Errorf("%d retries, want 0", n)
		}
	})
}

// TestFault12HoldOff checks that a throttled credential is not sent to Atlas before its
// Retry-After.
func TestFault12HoldOff(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]time.Duration{
		"7":                             7 * time.Second,
		"in two minutes":                2 * time.Minute, // as an HTTP date
		"Sun, 06 Nov 1994 08:49:37 GMT": time.Second,
		"soon":                          time.Second,
		"":                              time.Second,
		"999999999999999999999999":      5 * time.Minute,
	} {
		t.Run(header, func(t *testing.T) {
			testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
				for _, first := range []testutil.Operation{testutil.Create, testutil.Delete} {
					fault := emulator.Fault{Times: 1, Status: 429, Header: http.Header{}}
					switch header {
					case "":
					case "in two minutes":
						fault.Header.Set("Retry-After", time.Now().Add(2*time.Minute).UTC().Format(http.TimeFormat))
					default:
						fault.Header.Set("Retry-After", header)
					}
					s.Atlas.Inject(fault)
					jwt, before := testutil.Credential(s.Atlas), s.Atlas.Calls(emulator.Any)
					limited := testutil.Want{Code: codes.ResourceExhausted, HTTP: 429, Reason: "ATLAS_RATE_LIMITED"}
					limited.CheckRetry(t, c.Call(testutil.Context(t), first, jwt...), want-2*time.Second, want) // a date has whole seconds
					for _, op := range []testutil.Operation{testutil.Create, testutil.Delete} {
						got := c.Call(testutil.Context(t), op, jwt...)
						limited.CheckRetry(t, got, time.Millisecond, want)
						if op == testutil.Create && got.Get("cache-status") != "tokend; detail=throttled" {
							t.Errorf("cache-status %q", got.Get("cache-status"))
						}
					}
					if calls := s.Atlas.Calls(emulator.Any) - before; calls != 1 {
						t.Errorf("%d calls to Atlas, want 1", calls)
					}
					other := testutil.Credential(s.Atlas)
					testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, other...))
				}
			})
		})
	}
}

// TestFault28Overload checks that calls over the limit wait for a bounded time and are then
// refused.
func TestFault28Overload(t *testing.T) {
	t.Parallel()
	for _, http1 := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/1.1 only %t", http1), func(t *testing.T) {
			testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
				em := v.StartAtlas(t, emulator.Config{HTTP1Only: http1})
				s := v.StartWith(t, testutil.Plaintext, em, func(_ *server.Config, a *atlas.Config) { a.Timeout = time.Minute })
				gate := em.Hold(emulator.Create)
				defer gate.Release()
				var held sync.WaitGroup
				var callers []testutil.Caller // a gRPC connection has 100 calls at most
				for range 4 {
					callers = append(callers, s.GRPCCaller(t))
				}
				limit := s.Resilient.Stats().Limit / 2 // of a single tenant
				for i := range limit {
					held.Go(func() {
						testutil.WantCreated.Check(t, callers[i%len(callers)].Call(testutil.Context(t), testutil.Create, testutil.Credential(em)...))
					})
				}
				if err := gate.Wait(testutil.Context(t), limit); err != nil {
					t.Fatal(err)
				}
				for name, c := range s.Callers(t) {
					start := time.Now()
					got := c.Call(testutil.Context(t), testutil.Create, testutil.Credential(em)...)
					testutil.Want{Code: codes.ResourceExhausted, HTTP: 429, Reason: "OVERLOADED", Retry: time.Second}.Check(t, got)
					if status := got.Get("cache-status"); status != "tokend; detail=overloaded" {
						t.Errorf("%s: cache-status %q", name, status)
					}
					if took := time.Since(start); took < 500*time.Millisecond || took > 2*time.Second {
						t.Errorf("%s: refused after %v, want about a second in the queue", name, took)
					}
				}
				if n := gate.Held(); n != limit || s.Resilient.Stats().Open {
					t.Errorf("%d calls at Atlas, want %d; circuit breaker open: %t", n, limit, s.Resilient.Stats().Open)
				}
				gate.Release()
				held.Wait()
				testutil.WantCreated.Check(t, s.GRPCCaller(t).Call(testutil.Context(t), testutil.Create, testutil.Credential(em)...))
			})
		})
	}
}

// TestFault65Breaker checks that during an outage calls fail fast, a stale token is served, the
// replica stays ready and says why, and that all calls succeed once Atlas is back.
func TestFault65Breaker(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		jwt := testutil.Credential(s.Atlas)
		testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, jwt...))
		end := s.Atlas.Inject(emulator.Fault{Status: 503})
		testutil.Eventually(t, func() bool {
			c.Call(testutil.Context(t), testutil.Create, append(testutil.Credential(s.Atlas), "cache-control", "no-cache")...)
			return s.Resilient.Stats().Open
		}, "the circuit breaker does not open")
		before := s.Atlas.Calls(emulator.Delete)
		got := c.Call(testutil.Context(t), testutil.Delete, testutil.Credential(s.Atlas)...)
		testutil.Want{Code: codes.Unavailable, HTTP: 503, Reason: "ATLAS_UNAVAILABLE"}.CheckRetry(t, got, time.Millisecond, 1200*time.Millisecond)
		if s.Atlas.Calls(emulator.Delete) != before {
			t.Error("Atlas was called")
		}
		if code, body := s.Get(t, "/readyz"); code != 200 || !strings.HasPrefix(body, "ready\nAtlas has been down since ") {
			t.Errorf("/readyz: %d %q", code, body)
		}
		stale := c.Call(testutil.Context(t), testutil.Create, jwt...)
		if stale.Code != codes.OK || stale.Get("cache-status") != "tokend; hit; detail=stale" {
			t.Errorf("the stale token: %v %s, cache-status %q", stale.Code, stale.Reason, stale.Get("cache-status"))
		}
		end()
		testutil.Eventually(t, func() bool {
			return c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...).Code == codes.OK
		}, "calls still fail after the outage")
		testutil.WantDeleted.Check(t, c.Call(testutil.Context(t), testutil.Delete, jwt...))
		if code, body := s.Get(t, "/readyz"); code != 200 || body != "ready\n" {
			t.Errorf("/readyz: %d %q", code, body)
		}
	}, func(cfg *server.Config, _ *atlas.Config) {
		cfg.Cache.TTL, cfg.Cache.StaleIfError = time.Nanosecond, time.Hour
	})
}
