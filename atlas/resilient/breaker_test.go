package resilient_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/resilient"
)

// watched returns a client and what its OnChange was called with.
func watched(t *testing.T, a resilient.Atlas) (testClient, *[]string) {
	t.Helper()
	heard := &[]string{}
	return newClientWith(t, a, resilient.Config{OnChange: func(cause error) {
		if cause == nil {
			*heard = append(*heard, "closed")
			return
		}
		*heard = append(*heard, "open: "+cause.Error())
	}}), heard
}

// breakIt makes calls fail until the breaker opens.
func breakIt(t *testing.T, a *simulated, c testClient) {
	t.Helper()
	a.everything(fails(&atlas.Error{Kind: atlas.KindUnreachable}, 0))
	for range 100 {
		_ = create(t.Context(), c)
		if synctest.Wait(); c.Stats().Open {
			return
		}
	}
	t.Fatal("the breaker does not open")
}

// TestFault78Recovery: an outage opens the breaker, calls fail fast and Atlas gets one probe a
// second. When it is back the breaker closes without a call.
func TestFault78Recovery(t *testing.T) {
	for name, outage := range map[string]behavior{
		"503":     fails(status(503), time.Millisecond),
		"refused": fails(&atlas.Error{Kind: atlas.KindUnreachable}, time.Millisecond),
		"hang":    fails(&atlas.Error{Kind: atlas.KindTimeout, Sent: true}, 10*time.Second),
	} {
		for _, orgs := range []int{1, 2, 20} {
			t.Run(fmt.Sprintf("%s with %d orgs", name, orgs), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a := newSimulated()
					c, heard := watched(t, a)
					tr := newTraffic(t, c)
					for n := range orgs {
						tr.one("before", atlas.OpCreate, jwtOf(fmt.Sprint(n), 0), time.Second)
					}
					a.everything(outage)
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					tr.perSecond(ctx, 20, func(n int) {
						tr.one("during", atlas.OpDelete, jwtOf(fmt.Sprint(n%orgs), 0), 15*time.Second)
					})
					wait(20 * time.Second)
					if !c.Stats().Open {
						t.Fatal("the breaker is not open after 20 s")
					}
					if err := c.Check(); err == nil || !strings.Contains(err.Error(), "Atlas has been down since 2000-01-01T00:00:") {
						t.Errorf("Check returns %v", err)
					}
					probes, requests := a.count("probe"), a.count("")
					wait(30 * time.Second)
					if n := a.count("probe") - probes; n < 29 || n > 31 {
						t.Errorf("%d probes in 30 s, want one a second", n)
					}
					if n := a.count("") - requests; n > 0 {
						t.Errorf("%d calls reached Atlas while the breaker was open", n)
					}
					before := time.Now()
					err := c.DeleteEphemeralToken(t.Context(), jwtOf("0", 0))
					if e := asError(t, err); e.Kind != atlas.KindUnavailable || e.Sent || e.RetryAfter != time.Second || time.Since(before) > 0 {
						t.Errorf("a call got %+v after %v", e, time.Since(before))
					}
					tr.calls.Wait()

					wait(time.Minute) // no traffic
					a.everything(nil)
					back := time.Now()
					for c.Stats().Open {
						if wait(10 * time.Millisecond); time.Since(back) > 10*time.Second {
							t.Fatal("the breaker does not close")
						}
					}
					took := time.Since(back)
					t.Logf("%v; closed %v after Atlas was back", tr.of("during"), took)
					if took > 1100*time.Millisecond {
						t.Errorf("it closed after %v", took)
					}
					if err := c.Check(); err != nil || len(*heard) != 2 || (*heard)[1] != "closed" || !strings.HasPrefix((*heard)[0], "open: atlas: delete: ") {
						t.Errorf("Check returns %v, OnChange heard %q", err, *heard)
					}
					probes = a.count("probe")
					if wait(time.Minute); a.count("probe") != probes {
						t.Error("a closed breaker probes Atlas")
					}
				})
			})
		}
	}
}

// TestBreakerOneTenant: with one tenant, the breaker opens only if a probe fails too.
func TestBreakerOneTenant(t *testing.T) {
	for name, down := range map[string]bool{"Atlas is down": true, "Atlas fails this tenant": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newSimulated()
				outage := fails(status(500), 10*time.Millisecond)
				a.does("org", outage)
				if down {
					a.everything(outage)
				}
				c, heard := watched(t, a)
				for n := range 100 {
					if n == minFailures-1 && (len(*heard) > 0 || a.count("probe") > 0) {
						t.Errorf("after %d failures: heard %q, %d probes", n, *heard, a.count("probe"))
					}
					_ = c.DeleteEphemeralToken(t.Context(), jwtOf("org", 0))
					wait(20 * time.Millisecond)
				}
				if c.Stats().Open != down {
					t.Errorf("it is open: %t, heard %q", c.Stats().Open, *heard)
				}
				if n := a.count("probe"); n < 1 || n > 4 {
					t.Errorf("%d probes in 3 s", n)
				}
			})
		})
	}
}

const minFailures = 10 // of the breaker

// TestBreakerMostTenants: the breaker opens if most of the tenants fail, however many calls each
// makes.
func TestBreakerMostTenants(t *testing.T) {
	for failing, want := range map[int]bool{1: false, 4: false, 5: false, 6: true, 10: true} {
		t.Run(fmt.Sprintf("%d of 10", failing), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newSimulated()
				c, heard := watched(t, a)
				tr := newTraffic(t, c)
				for n := range 10 {
					tr.one("before", atlas.OpDelete, jwtOf(fmt.Sprint(n), 0), time.Second)
				}
				for n := range failing {
					a.does(fmt.Sprint(n), fails(status(500), time.Millisecond))
				}
				wait(time.Minute)
				for n := range 10 {
					_ = c.DeleteEphemeralToken(t.Context(), jwtOf(fmt.Sprint(9-n), 0))
				}
				for n := range 200 {
					_ = c.DeleteEphemeralToken(t.Context(), jwtOf(fmt.Sprint(n%failing), 0))
				}
				if got := len(*heard) > 0; got != want {
					t.Errorf("the breaker opened: %t, want %t", got, want)
				}
			})
		})
	}
}

// TestBreakerStaysClosed: what a caller or an operator has to fix does not mean that Atlas is down;
// nor does a caller in a hurry. Atlas's refusals of credentials say nothing either way.
func TestBreakerStaysClosed(t *testing.T) {
	for name, fail := range map[string]*atlas.Error{
		"400": status(400), "401": status(401), "403": status(403), "404": status(404), "409": status(409), "429": status(429),
		"TLS":                {Kind: atlas.KindTLS},
		"redirect":           {Kind: atlas.KindRedirect, Sent: true},
		"invalid answer":     {Kind: atlas.KindInvalidResponse, Sent: true},
		"invalid credential": {Kind: atlas.KindInvalidCredential},
	} {
		t.Run(name, func(t *testing.T) {
			stayClosed(t, fails(fail, time.Millisecond), func(ctx context.Context, c testClient) {
				for _, call := range operations {
					_ = call(ctx, c)
				}
			})
		})
	}
	hang := fails(nil, time.Hour)
	t.Run("short deadline", func(t *testing.T) {
		stayClosed(t, hang, func(ctx context.Context, c testClient) {
			ctx, cancel := context.WithTimeout(ctx, 900*time.Millisecond)
			defer cancel()
			_ = create(ctx, c)
		})
	})
	t.Run("caller leaves", func(t *testing.T) {
		stayClosed(t, hang, func(ctx context.Context, c testClient) {
			ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
			defer time.AfterFunc(5*time.Second, cancel).Stop()
			_ = create(ctx, c)
		})
	})
}

func stayClosed(t *testing.T, b behavior, call func(context.Context, testClient)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a := newSimulated()
		a.everything(b)
		c, heard := watched(t, a)
		for range 10 {
			var calls sync.WaitGroup
			for range 20 {
				calls.Go(func() { call(t.Context(), c) })
			}
			calls.Wait()
		}
		if len(*heard) > 0 || c.Check() != nil || a.count("probe") > 0 {
			t.Errorf("heard %q, Check returns %v, %d probes", *heard, c.Check(), a.count("probe"))
		}
	})
}

// TestBreakerIgnoresRefusals: Atlas's 401s for made-up JWTs do not hide that the calls of all
// others fail.
func TestBreakerIgnoresRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newSimulated()
		c, _ := watched(t, a)
		_ = c.DeleteEphemeralToken(t.Context(), jwtOf("org", 0))
		wait(time.Minute)
		a.does(madeUp, fails(status(401), time.Millisecond))
		a.does("org", fails(status(500), time.Millisecond))
		for n := range 20 {
			_ = c.DeleteEphemeralToken(t.Context(), jwtOf(madeUp, n))
			_ = c.DeleteEphemeralToken(t.Context(), jwtOf("org", 0))
		}
		synctest.Wait()
		if a.count("probe") == 0 {
			t.Error("Atlas was not probed")
		}
	})
}

// TestBreakerHang: calls that hung when the breaker opened do not keep others out once it has
// closed, and do not count as failures then.
func TestBreakerHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newSimulated()
		c, heard := watched(t, a)
		tr := newTraffic(t, c)
		for n := range 5 {
			tr.one("before", atlas.OpCreate, jwtOf(fmt.Sprint(n), 0), time.Second)
		}
		a.everything(fails(&atlas.Error{Kind: atlas.KindTimeout, Sent: true}, 10*time.Second))
		ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
		defer cancel()
		tr.perSecond(ctx, 2000, func(n int) { // the sooner half is cut off by its own deadline
			tr.one("during", atlas.OpCreate, jwtOf(fmt.Sprint(n%5), 0), time.Duration(2+n%2*18)*time.Second)
		})
		<-ctx.Done()
		s := c.Stats()
		t.Logf("after 12 s: %+v", s)
		if !s.Open || s.InFlight > 2*s.Limit || s.Waiting > 0 {
			t.Errorf("%+v", s)
		}
		a.everything(nil)
		wait(1100 * time.Millisecond)
		for range 100 {
			tr.calls.Go(func() { tr.one("after", atlas.OpCreate, jwtOf("1", 0), time.Second) })
			wait(10 * time.Millisecond)
		}
		tr.calls.Wait()
		if n := tr.of("after").failures(); n > 0 || len(*heard) != 2 {
			t.Errorf("%v; heard %q", tr.of("after"), *heard)
		}
		if s := c.Stats(); s.InFlight != 0 || s.Waiting != 0 {
			t.Errorf("in the end: %+v", s)
		}
	})
}

// TestBreakerForgetsOldCalls: calls that began before the breaker closed, and time out after that,
// do not open it again.
func TestBreakerForgetsOldCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newSimulated()
		c, heard := watched(t, a)
		tr := newTraffic(t, c)
		call := func(times int) {
			for n := range times {
				tr.calls.Go(func() { tr.one("all", atlas.OpDelete, jwtOf(fmt.Sprint(n%5), 0), time.Minute) })
			}
			synctest.Wait()
		}
		call(5)
		tr.calls.Wait()
		a.everything(fails(&atlas.Error{Kind: atlas.KindTimeout, Sent: true}, 30*time.Second))
		call(50)
		a.everything(fails(status(503), time.Millisecond))
		call(50)
		wait(5 * time.Second)
		if !c.Stats().Open {
			t.Fatal("the breaker is not open")
		}
		a.everything(nil)
		tr.calls.Wait()
		wait(time.Second)
		if len(*heard) != 2 {
			t.Errorf("heard %q", *heard)
		}
	})
}

// TestBreakerOpensForWaiters: calls that wait for a slot fail as soon as the breaker opens.
func TestBreakerOpensForWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newSimulated()
		c := newClientWith(t, a, resilient.Config{MaxCalls: 1})
		a.everything(hangs)
		ctx, cancel := context.WithCancel(t.Context())
		var calls sync.WaitGroup
		calls.Go(func() { _ = create(ctx, c) })
		synctest.Wait()
		calls.Go(func() {
			start := time.Now()
			if err := create(t.Context(), c); kindOf(err) != atlas.KindUnavailable || time.Since(start) > 0 {
				t.Errorf("the waiting call got %v after %v", err, time.Since(start))
			}
		})
		synctest.Wait()
		a.everything(fails(&atlas.Error{Kind: atlas.KindStatus, StatusCode: 503}, 0))
		for range minFailures {
			_ = operations["login"](t.Context(), c)
		}
		synctest.Wait()
		if s := c.Stats(); !s.Open || s.Waiting != 0 || s.InFlight != 1 {
			t.Errorf("%+v", s)
		}
		cancel()
		calls.Wait()
	})
}

// TestClose ends the probes.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newSimulated()
		c := newClient(t, a)
		breakIt(t, a, c)
		a.everything(hangs)
		wait(3 * time.Second)
		c.Close()
		probes := a.count("probe")
		if wait(time.Minute); a.count("probe") != probes {
			t.Error("it goes on probing")
		}
		c = newClient(t, a)
		c.Close()
		a.everything(fails(&atlas.Error{Kind: atlas.KindUnreachable}, 0))
		for range 20 {
			_ = create(t.Context(), c)
		}
		if c.Stats().Open {
			t.Error("the breaker opened after Close")
		}
	})
}

func asError(t *testing.T, err error) atlas.Error {
	t.Helper()
	if kindOf(err) == "" {
		t.Fatalf("got %v, want an *atlas.Error", err)
	}
	return *err.(*atlas.Error) //nolint:errorlint // kindOf has looked
}

func contains(words, word string) bool { return slices.Contains(strings.Fields(words), word) }
