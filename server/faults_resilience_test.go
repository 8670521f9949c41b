package server_test

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
	"github.com/ForstaLabs/ephemeral-token-service/atlas/resilient"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

func newResilient(t testing.TB, client *atlas.Client) *resilient.Client {
	t.Helper()
	c, err := resilient.New(client, resilient.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What Atlas does once is not seen by whoever creates: the parts of rows 2, 3, 13 and 14 that are about repeating.

func TestFault02ResetOnce(t *testing.T)       { testOnce(t, "02") }
func TestFault03BrokenBodyOnce(t *testing.T)  { testOnce(t, "03") }
func TestFault13ServerErrorOnce(t *testing.T) { testOnce(t, "13") }
func TestFault14UnavailableOnce(t *testing.T) { testOnce(t, "14") }

func testOnce(t *testing.T, row string) {
	t.Helper()
	for _, tc := range atlasFaults() {
		if !strings.HasPrefix(tc.name, row+" ") || !tc.repeated {
			continue
		}
		tc.fault.Times = 1
		t.Run(tc.name, func(t *testing.T) {
			matrix(t, func(t *testing.T, s *service, c caller) {
				for op, want := range map[operation]want{create: wantCreated, remove: tc.delete} {
					s.atlas.Inject(tc.fault)
					before := s.atlas.Calls(emulator.Any)
					want.check(t, c.call(testContext(t), op, credential(s.atlas)...))
					attempts := map[operation]int{create: 2, remove: 1}[op]
					if calls := s.atlas.Calls(emulator.Any) - before; calls != attempts {
						t.Errorf("%s: Atlas was called %d times, want %d", op, calls, attempts)
					}
				}
			})
		})
	}
}

// TestFault02StaleConnection: that a connection which was kept has gone is nothing that a caller sees, and no repeat either.
func TestFault02StaleConnection(t *testing.T) {
	em, err := emulator.Start(emulator.Config{HTTP1Only: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	for _, mode := range []security{plaintext, serverTLS, mutualTLS} {
		s := startServiceWith(t, mode, em)
		for name, c := range s.callers(t) {
			t.Run(string(mode)+"/"+name, func(t *testing.T) {
				wantCreated.check(t, c.call(testContext(t), create, credential(em)...))
				// The next request on it meets a closed connection, as when it crosses the close on the way.
				em.Inject(emulator.Fault{Times: 1, Drop: emulator.CloseConnection})
				wantCreated.check(t, c.call(testContext(t), create, credential(em)...))
				if n := s.resilient.Stats().Retries; n != 0 {
					t.Errorf("%d repeats", n)
				}
			})
		}
	}
}

// TestFault12HoldOff: what Atlas says to one credential is not asked for again before its time.
func TestFault12HoldOff(t *testing.T) {
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
			matrix(t, func(t *testing.T, s *service, c caller) {
				for _, first := range []operation{create, remove} {
					header := http.Header{}
					switch tc.header {
					case "":
					case "in two minutes":
						header.Set("Retry-After", time.Now().Add(2*time.Minute).UTC().Format(http.TimeFormat))
					default:
						header.Set("Retry-After", tc.header)
					}
					s.atlas.Inject(emulator.Fault{Times: 1, Status: 429, Header: header})
					jwt, before := credential(s.atlas), s.atlas.Calls(emulator.Any)
					limited := want{code: codes.ResourceExhausted, http: 429, reason: "ATLAS_RATE_LIMITED"}
					// A date is in whole seconds.
					limited.checkRetry(t, c.call(testContext(t), first, jwt...), tc.want-2*time.Second, tc.want)
					if tc.want > time.Second { // or it may be over on a slow machine
						for _, op := range []operation{create, remove} {
							limited.checkRetry(t, c.call(testContext(t), op, jwt...), time.Millisecond, tc.want)
						}
						if calls := s.atlas.Calls(emulator.Any) - before; calls != 1 {
							t.Errorf("Atlas was called %d times, want 1", calls)
						}
					}
					wantCreated.check(t, c.call(testContext(t), create, credential(s.atlas)...)) // another
				}
			})
		})
	}
}

// TestFault28Overload: as many calls as Atlas can do are there, some wait, and the rest is refused at once.
func TestFault28Overload(t *testing.T) {
	t.Parallel()
	for _, http1 := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/1.1 only %t", http1), func(t *testing.T) {
			em, err := emulator.Start(emulator.Config{HTTP1Only: http1})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(em.Close)
			for _, mode := range []security{plaintext, serverTLS, mutualTLS} {
				t.Run(string(mode), func(t *testing.T) { testOverload(t, mode, em) })
			}
		})
	}
}

func testOverload(t *testing.T, mode security, em *emulator.Emulator) {
	s := startServiceWith(t, mode, em, func(_ *server.Config, a *atlas.Config) { a.Timeout = time.Minute })
	gate := em.Hold(emulator.Create)
	defer gate.Release()
	refused := want{code: codes.ResourceExhausted, http: 429, reason: "OVERLOADED", retry: time.Second}
	pool := s.callerPool(t)
	ctx, leave := context.WithTimeout(t.Context(), time.Minute)
	defer leave()
	var wg sync.WaitGroup
	for i := range manyCallers {
		wg.Go(func() { pool[i%len(pool)].call(ctx, create, credential(em)...) })
	}
	eventually(t, func() bool { return s.resilient.Stats().Refused > 0 }, "nobody is refused")
	most := s.resilient.Stats().Limit
	for name, c := range s.callers(t) {
		before := s.resilient.Stats().Refused
		for s.resilient.Stats().Waiting == 0 { // they give up after a second
			if ctx.Err() != nil {
				t.Fatal("nobody waits")
			}
			wg.Go(func() { pool[0].call(ctx, create, credential(em)...) })
			eventually(t, func() bool { return s.resilient.Stats().Waiting > 0 || s.resilient.Stats().Refused > before }, "no call arrives")
		}
		got := c.call(ctx, create, credential(em)...)
		if got.Reason != "OVERLOADED" {
			t.Errorf("%s: got %v %s", name, got.Code, got.Reason)
			continue
		}
		refused.check(t, got)
	}
	if held := gate.Held(); held > most {
		t.Errorf("%d calls are at Atlas, want %d at most", held, most)
	}
	if s.resilient.Stats().Open {
		t.Error("the breaker has opened")
	}
	gate.Release()
	wg.Wait()
	eventually(t, func() bool {
		return s.grpcCaller(t).call(ctx, create, credential(em)...).Code == codes.OK
	}, "it goes on refusing")
}

// TestFault65Breaker: an Atlas that is down is left alone, callers hear of it at once and a token that was kept helps; the
// replica stays ready and says why; and when Atlas is back, so is everything.
func TestFault65Breaker(t *testing.T) {
	t.Parallel()
	matrix(t, func(t *testing.T, s *service, c caller) {
		jwt := credential(s.atlas)
		wantCreated.check(t, c.call(testContext(t), create, jwt...))
		mend := s.atlas.Inject(emulator.Fault{Status: 503})
		defer mend()
		eventually(t, func() bool {
			var many sync.WaitGroup // so that enough of them fail in a few seconds on a busy machine, too
			for range 60 {
				many.Go(func() { c.call(testContext(t), create, append(credential(s.atlas), "cache-control", "no-cache")...) })
			}
			many.Wait()
			return s.resilient.Stats().Open
		}, "the breaker does not open")
		var got outcome
		eventually(t, func() bool { // a probe may be due
			before := s.atlas.Calls(emulator.Any)
			got = c.call(testContext(t), remove, credential(s.atlas)...)
			return s.atlas.Calls(emulator.Any) == before
		}, "Atlas is called all the same")
		w := want{code: codes.Unavailable, http: 503, reason: "ATLAS_UNAVAILABLE"}
		w.checkRetry(t, got, time.Millisecond, 1200*time.Millisecond)
		if code, body := s.get(t, "/readyz"); code != 200 || !strings.HasPrefix(body, "ready\nAtlas is down since ") {
			t.Errorf("/readyz: %d %q", code, body)
		}
		kept := c.call(testContext(t), create, jwt...)
		if kept.Code != codes.OK || kept.header("cache-status") != "tokend; hit; detail=stale" {
			t.Errorf("the kept token: %v %s, cache-status %q", kept.Code, kept.Reason, kept.header("cache-status"))
		}
		mend()
		eventually(t, func() bool { return c.call(testContext(t), create, credential(s.atlas)...).Code == codes.OK }, "it is not back")
		wantDeleted.check(t, c.call(testContext(t), remove, jwt...))
		if code, body := s.get(t, "/readyz"); code != 200 || body != "ready\n" {
			t.Errorf("/readyz: %d %q", code, body)
		}
	}, func(cfg *server.Config, _ *atlas.Config) {
		cfg.Cache.TTL, cfg.Cache.StaleIfError = time.Nanosecond, time.Hour
	})
}
