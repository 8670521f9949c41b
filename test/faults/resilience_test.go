package faults

import (
	"context"
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

// What Atlas does once is not seen by whoever creates: the parts of rows 2, 3, 13 and 14 that are
// about repeating.

func TestFault02ResetOnce(t *testing.T)       { testOnce(t, "02") }
func TestFault03BrokenBodyOnce(t *testing.T)  { testOnce(t, "03") }
func TestFault13ServerErrorOnce(t *testing.T) { testOnce(t, "13") }
func TestFault14UnavailableOnce(t *testing.T) { testOnce(t, "14") }

func testOnce(t *testing.T, row string) {
	t.Helper()
	t.Parallel()
	for _, tc := range testutil.AtlasFaults() {
		if !strings.HasPrefix(tc.Name, row+" ") || !tc.Repeated {
			continue
		}
		tc.Fault.Times = 1
		t.Run(tc.Name, func(t *testing.T) {
			testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
				for op, want := range map[testutil.Operation]testutil.Want{testutil.Create: testutil.WantCreated, testutil.Delete: tc.Delete} {
					s.Atlas.Inject(tc.Fault)
					before := s.Atlas.Calls(emulator.Any)
					want.Check(t, c.Call(testutil.Context(t), op, testutil.Credential(s.Atlas)...))
					attempts := map[testutil.Operation]int{testutil.Create: 2, testutil.Delete: 1}[op]
					if calls := s.Atlas.Calls(emulator.Any) - before; calls != attempts {
						t.Errorf("%s: Atlas was called %d times, want %d", op, calls, attempts)
					}
				}
			})
		})
	}
}

// TestFault02StaleConnection: that a connection which was kept has gone is nothing that a caller
// sees, and no repeat either.
func TestFault02StaleConnection(t *testing.T) {
	t.Parallel()
	em, err := emulator.Start(emulator.Config{HTTP1Only: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	for _, mode := range []testutil.Security{testutil.Plaintext, testutil.ServerTLS, testutil.MutualTLS} {
		s := testutil.StartWith(t, mode, em)
		for name, c := range s.Callers(t) {
			t.Run(string(mode)+"/"+name, func(t *testing.T) {
				testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(em)...))
				// The next request on it meets a closed connection, as when it crosses the close on
				// the way.
				em.Inject(emulator.Fault{Times: 1, Drop: emulator.CloseConnection})
				testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(em)...))
				if n := s.Resilient.Stats().Retries; n != 0 {
					t.Errorf("%d repeats", n)
				}
			})
		}
	}
}

// TestFault12HoldOff: what Atlas says to one credential is not asked for again before its time.
func TestFault12HoldOff(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		header string
		want   time.Duration
	}{
		"seconds":   {"7", 7 * time.Second},
		"HTTP-date": {"in two minutes", 2 * time.Minute},
		"past":      {"Sun, 06 Nov 1994 08:49:37 GMT", time.Second},
		"garbage":   {"soon", time.Second},
		"none":      {"", time.Second},
		"huge":      {"999999999999999999999999", 5 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
				for _, first := range []testutil.Operation{testutil.Create, testutil.Delete} {
					header := http.Header{}
					switch tc.header {
					case "":
					case "in two minutes":
						header.Set("Retry-After", time.Now().Add(2*time.Minute).UTC().Format(http.TimeFormat))
					default:
						header.Set("Retry-After", tc.header)
					}
					s.Atlas.Inject(emulator.Fault{Times: 1, Status: 429, Header: header})
					jwt, before := testutil.Credential(s.Atlas), s.Atlas.Calls(emulator.Any)
					limited := testutil.Want{Code: codes.ResourceExhausted, HTTP: 429, Reason: "ATLAS_RATE_LIMITED"}
					// A date is in whole seconds.
					limited.CheckRetry(t, c.Call(testutil.Context(t), first, jwt...), tc.want-2*time.Second, tc.want)
					if tc.want > time.Second { // or it may be over on a slow machine
						for _, op := range []testutil.Operation{testutil.Create, testutil.Delete} {
							got := c.Call(testutil.Context(t), op, jwt...)
							limited.CheckRetry(t, got, time.Millisecond, tc.want)
							if op == testutil.Create && got.Get("cache-status") != "tokend; detail=throttled" {
								t.Errorf("cache-status %q", got.Get("cache-status"))
							}
						}
						if calls := s.Atlas.Calls(emulator.Any) - before; calls != 1 {
							t.Errorf("Atlas was called %d times, want 1", calls)
						}
					}
					testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...)) // another
				}
			})
		})
	}
}

// TestFault28Overload: as many calls as Atlas can do are there, some wait, and the rest is refused
// at once.
func TestFault28Overload(t *testing.T) {
	t.Parallel()
	for _, http1 := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/1.1 only %t", http1), func(t *testing.T) {
			em, err := emulator.Start(emulator.Config{HTTP1Only: http1})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(em.Close)
			testOverload(t, testutil.Plaintext, em)
		})
	}
}

func testOverload(t *testing.T, mode testutil.Security, em *emulator.Emulator) {
	s := testutil.StartWith(t, mode, em, func(_ *server.Config, a *atlas.Config) { a.Timeout = time.Minute })
	gate := em.Hold(emulator.Create)
	defer gate.Release()
	refused := testutil.Want{Code: codes.ResourceExhausted, HTTP: 429, Reason: "OVERLOADED", Retry: time.Second}
	pool := s.CallerPool(t)
	ctx, leave := context.WithTimeout(t.Context(), time.Minute)
	defer leave()
	var wg sync.WaitGroup
	for i := range testutil.ManyCallers() {
		wg.Go(func() { pool[i%len(pool)].Call(ctx, testutil.Create, testutil.Credential(em)...) })
	}
	testutil.Eventually(t, func() bool { return s.Resilient.Stats().Refused > 0 }, "nobody is refused")
	most := s.Resilient.Stats().Limit
	for name, c := range s.Callers(t) {
		before := s.Resilient.Stats().Refused
		for s.Resilient.Stats().Waiting == 0 { // they give up after a second
			if ctx.Err() != nil {
				t.Fatal("nobody waits")
			}
			wg.Go(func() { pool[0].Call(ctx, testutil.Create, testutil.Credential(em)...) })
			testutil.Eventually(t, func() bool { return s.Resilient.Stats().Waiting > 0 || s.Resilient.Stats().Refused > before }, "no call arrives")
		}
		got := c.Call(ctx, testutil.Create, testutil.Credential(em)...)
		if got.Reason != "OVERLOADED" {
			t.Errorf("%s: got %v %s", name, got.Code, got.Reason)
			continue
		}
		if status := got.Get("cache-status"); status != "tokend; detail=overloaded" {
			t.Errorf("%s: cache-status %q", name, status)
		}
		refused.Check(t, got)
	}
	if held := gate.Held(); held > most {
		t.Errorf("%d calls are at Atlas, want %d at most", held, most)
	}
	if s.Resilient.Stats().Open {
		t.Error("the breaker has opened")
	}
	gate.Release()
	wg.Wait()
	testutil.Eventually(t, func() bool {
		return s.GRPCCaller(t).Call(ctx, testutil.Create, testutil.Credential(em)...).Code == codes.OK
	}, "it goes on refusing")
}

// TestFault65Breaker: an Atlas that is down is left alone, callers hear of it at once and a token
// that was kept helps; the replica stays ready and says why; and when Atlas is back, so is
// everything.
func TestFault65Breaker(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		jwt := testutil.Credential(s.Atlas)
		testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, jwt...))
		mend := s.Atlas.Inject(emulator.Fault{Status: 503})
		defer mend()
		testutil.Eventually(t, func() bool {
			var many sync.WaitGroup // so that enough of them fail in a few seconds on a busy machine, too
			for range 60 {
				many.Go(func() {
					c.Call(testutil.Context(t), testutil.Create, append(testutil.Credential(s.Atlas), "cache-control", "no-cache")...)
				})
			}
			many.Wait()
			return s.Resilient.Stats().Open
		}, "the breaker does not open")
		var got testutil.Outcome
		testutil.Eventually(t, func() bool { // a probe may be due
			before := s.Atlas.Calls(emulator.Any)
			got = c.Call(testutil.Context(t), testutil.Delete, testutil.Credential(s.Atlas)...)
			return s.Atlas.Calls(emulator.Any) == before
		}, "Atlas is called all the same")
		w := testutil.Want{Code: codes.Unavailable, HTTP: 503, Reason: "ATLAS_UNAVAILABLE"}
		w.CheckRetry(t, got, time.Millisecond, 1200*time.Millisecond)
		if code, body := s.Get(t, "/readyz"); code != 200 || !strings.HasPrefix(body, "ready\nAtlas is down since ") {
			t.Errorf("/readyz: %d %q", code, body)
		}
		kept := c.Call(testutil.Context(t), testutil.Create, jwt...)
		if kept.Code != codes.OK || kept.Get("cache-status") != "tokend; hit; detail=stale" {
			t.Errorf("the kept token: %v %s, cache-status %q", kept.Code, kept.Reason, kept.Get("cache-status"))
		}
		mend()
		testutil.Eventually(t, func() bool {
			return c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...).Code == codes.OK
		}, "it is not back")
		testutil.WantDeleted.Check(t, c.Call(testutil.Context(t), testutil.Delete, jwt...))
		if code, body := s.Get(t, "/readyz"); code != 200 || body != "ready\n" {
			t.Errorf("/readyz: %d %q", code, body)
		}
	}, func(cfg *server.Config, _ *atlas.Config) {
		cfg.Cache.TTL, cfg.Cache.StaleIfError = time.Nanosecond, time.Hour
	})
}
