package resilient_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/resilient"
)

// workers is a behavior that does n calls at a time, each in d, and queues those beyond.
func workers(n int, d time.Duration) behavior {
	busy := make(chan struct{}, n)
	return func(ctx context.Context) error {
		select {
		case busy <- struct{}{}:
		case <-ctx.Done():
			return &atlas.Error{Kind: atlas.KindCanceled, Err: ctx.Err(), Sent: true}
		}
		defer func() { <-busy }()
		return takes(d)(ctx)
	}
}

// TestShares: alone a tenant gets half of the slots, k greedy tenants get 1/(k+1) each.
func TestShares(t *testing.T) {
	const slots = 60
	for _, greedy := range []int{1, 2, 3, 5, 20} {
		t.Run(fmt.Sprint(greedy), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newSimulated()
				c := newClientWith(t, a, resilient.Config{MaxCalls: slots})
				var orgs []string
				for n := range greedy {
					orgs = append(orgs, fmt.Sprint(n))
				}
				a.everything(takes(time.Hour))
				ctx, cancel := context.WithCancel(t.Context())
				var calls sync.WaitGroup
				for range slots {
					for _, org := range orgs {
						calls.Go(func() { _, _ = c.CreateEphemeralToken(ctx, jwtOf(org, 0)) })
					}
					synctest.Wait()
				}
				for _, org := range orgs {
					if n, want := a.count(org), slots/(greedy+1); n < want || n > want+1 {
						t.Errorf("org %s has %d calls in flight, want %d", org, n, want)
					}
				}
				cancel()
				calls.Wait()
			})
		})
	}
}

// TestFreedSlot: a freed slot goes to the waiting tenant with the fewest calls in flight.
func TestFreedSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newSimulated()
		c := newClientWith(t, a, resilient.Config{MaxCalls: 4})
		a.does("many", takes(500*time.Millisecond))
		a.does(madeUp, takes(500*time.Millisecond))
		a.does("one", takes(100*time.Millisecond))
		tr := newTraffic(t, c)
		call := func(org string, times int) {
			for range times {
				tr.calls.Go(func() { tr.one(org, atlas.OpCreate, jwtOf(org, 0), 10*time.Second) })
			}
			synctest.Wait()
		}
		call("many", 6) // two are sent
		call(madeUp, 1) // of a tenant that is not verified
		call("one", 2)  // one is sent; the other waits since later than those of many
		wait(150 * time.Millisecond)
		if n := a.count("one"); n != 2 {
			t.Errorf("%d calls of the tenant with the fewest calls were sent", n)
		}
		if n := a.count("many"); n != 2 {
			t.Errorf("%d calls of the tenant with many were sent", n)
		}
		tr.calls.Wait()
	})
}

// TestQueue: a call waits for a second; one whose deadline comes first leaves while its caller can
// still be answered; with too little time it does not wait at all.
func TestQueue(t *testing.T) {
	for name, tc := range map[string]struct{ deadline, waits time.Duration }{
		"patient":     {time.Minute, time.Second},
		"in a hurry":  {500 * time.Millisecond, 450 * time.Millisecond},
		"out of time": {40 * time.Millisecond, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, end := occupied(t)
				defer end()
				ctx, cancel := context.WithTimeout(t.Context(), tc.deadline)
				defer cancel()
				start := time.Now()
				err := create(ctx, c)
				if e := asError(t, err); e.Kind != atlas.KindOverloaded || e.Sent || e.RetryAfter != time.Second {
					t.Errorf("got %+v", e)
				}
				if waited := time.Since(start); waited != tc.waits || c.Stats().Refused != 1 || c.Stats().Waiting != 0 {
					t.Errorf("it waited for %v, want %v; %+v", waited, tc.waits, c.Stats())
				}
			})
		})
	}
	t.Run("caller leaves", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, end := occupied(t)
			defer end()
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Millisecond, cancel)
			if err := create(ctx, c); kindOf(err) != atlas.KindCanceled || c.Stats().Refused != 0 || c.Stats().Waiting != 0 {
				t.Errorf("got %v; %+v", err, c.Stats())
			}
		})
	})
	t.Run("full", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, end := occupied(t)
			defer end()
			var calls sync.WaitGroup
			for range 4 { // half of the eight places
				calls.Go(func() { _ = create(t.Context(), c) })
			}
			synctest.Wait()
			start := time.Now()
			if err := create(t.Context(), c); kindOf(err) != atlas.KindOverloaded || time.Since(start) > 0 {
				t.Errorf("got %v after %v", err, time.Since(start))
			}
			calls.Wait()
		})
	})
}

// occupied returns a client whose one slot is taken until end is called.
func occupied(t *testing.T) (c testClient, end func()) {
	t.Helper()
	a := newSimulated()
	a.everything(hangs)
	c = newClientWith(t, a, resilient.Config{MaxCalls: 1})
	ctx, cancel := context.WithCancel(t.Context())
	var call sync.WaitGroup
	call.Go(func() { _ = create(ctx, c) })
	synctest.Wait()
	return c, func() { cancel(); call.Wait() }
}

// TestFault28MaxCalls: no load brings more calls to Atlas than MaxCalls, and one tenant brings half
// of that.
func TestFault28MaxCalls(t *testing.T) {
	for _, orgs := range []int{1, 100} {
		synctest.Test(t, func(t *testing.T) {
			a := newSimulated()
			c := newClientWith(t, a, resilient.Config{MaxCalls: 60})
			tr := newTraffic(t, c)
			var mu sync.Mutex
			now, most := 0, 0
			a.everything(func(context.Context) error {
				mu.Lock()
				now++
				most = max(most, now)
				mu.Unlock()
				wait(10 * time.Millisecond)
				mu.Lock()
				now--
				mu.Unlock()
				return nil
			})
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			tr.perSecond(ctx, 10_000, func(n int) {
				tr.one("all", atlas.OpCreate, jwtOf(fmt.Sprint(n%orgs), 0), 2*time.Second)
			})
			tr.calls.Wait()
			if want := map[int]int{1: 30, 100: 60}[orgs]; most != want {
				t.Errorf("%d orgs: %d calls were at Atlas at a time, want %d", orgs, most, want)
			}
		})
	}
}

// TestOverload: an Atlas that is offered ten times as many creates as it can do goes on doing what
// it can.
func TestOverload(t *testing.T) {
	const parallel = 20
	for _, latency := range []time.Duration{20 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond} {
		for _, orgs := range []int{1, 50} {
			capacity := int(parallel * time.Second / latency)
			t.Run(fmt.Sprintf("%d calls a second, %d orgs", capacity, orgs), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a := newSimulated()
					a.everything(workers(parallel, latency))
					tr := newTraffic(t, newClient(t, a))
					const seconds = 3
					for _, party := range []string{"light", "heavy"} {
						rate := map[string]int{"light": capacity * 9 / 10, "heavy": capacity * 10}[party]
						ctx, cancel := context.WithTimeout(t.Context(), seconds*time.Second)
						tr.perSecond(ctx, rate, func(n int) {
							tr.one(party, atlas.OpCreate, jwtOf(fmt.Sprint(n%orgs), 0), 10*time.Second)
						})
						tr.calls.Wait()
						cancel()
						t.Logf("%s: %v", party, tr.of(party))
					}
					if n := tr.of("light").failures(); n > 0 {
						t.Errorf("%d calls failed that Atlas could serve", n)
					}
					heavy := tr.of("heavy")
					if least := capacity * seconds * 9 / 10; heavy.ok < least {
						t.Errorf("%d calls were answered, want %d at least", heavy.ok, least)
					}
					if heavy.failures() != heavy.failed[string(atlas.KindOverloaded)] {
						t.Errorf("calls failed otherwise: %v", heavy)
					}
				})
			})
		}
	}
}

// Test512Callers: 512 callers that each make one call after the other are not refused if Atlas can
// serve them: with credentials that it has not accepted yet, with one each, and of one org.
func Test512Callers(t *testing.T) {
	for name, jwt := range map[string]func(n int) atlas.JWT{
		"an org each": func(n int) atlas.JWT { return jwtOf(fmt.Sprint(n), 0) },
		"one org":     func(n int) atlas.JWT { return jwtOf("org", n) },
	} {
		for _, latency := range []time.Duration{10 * time.Millisecond, 40 * time.Millisecond} {
			t.Run(fmt.Sprintf("%s, %v", name, latency), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a := newSimulated()
					a.everything(takes(latency))
					tr := newTraffic(t, newClient(t, a))
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					for n := range 512 {
						tr.calls.Go(func() {
							for ctx.Err() == nil {
								tr.one("all", atlas.OpCreate, jwt(n), 2*time.Second)
							}
						})
					}
					tr.calls.Wait()
					all := tr.of("all")
					t.Logf("%v: %d a second", all, all.ok)
					if all.failures() > 0 {
						t.Errorf("calls failed: %v", all)
					}
					slots := 256
					if name == "one org" {
						slots = 128
					}
					if least := int(time.Second/latency) * slots * 9 / 10; all.ok < least {
						t.Errorf("%d calls in a second, want %d at least", all.ok, least)
					}
				})
			})
		}
	}
}

// TestLoginPassesCreates: logins do not wait for the slots of creates.
func TestLoginPassesCreates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newSimulated()
		a.does("", takes(time.Minute))
		a.does("login", takes(0))
		c := newClient(t, a)
		ctx, cancel := context.WithCancel(t.Context())
		var calls sync.WaitGroup
		for range 200 {
			calls.Go(func() { _ = create(ctx, c) })
		}
		synctest.Wait()
		if s := c.Stats(); s.InFlight != s.Limit/2 || s.Waiting != 200-s.Limit/2 {
			t.Errorf("%+v", s)
		}
		for _, op := range []string{"login", "refresh"} {
			if err := operations[op](t.Context(), c); err != nil {
				t.Errorf("%s: %v", op, err)
			}
		}
		cancel()
		calls.Wait()
		if s := c.Stats(); s.InFlight != 0 || s.Waiting != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestTenants: what makes a tenant.
func TestTenants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newSimulated()
		c := newClientWith(t, a, resilient.Config{MaxCalls: 16})
		a.everything(takes(time.Hour))
		ctx, cancel := context.WithCancel(t.Context())
		var calls sync.WaitGroup
		start := func(ctx context.Context, jwt atlas.JWT) int {
			before := c.Stats().InFlight
			for range 16 {
				calls.Go(func() { _, _ = c.CreateEphemeralToken(ctx, jwt) })
			}
			synctest.Wait()
			return c.Stats().InFlight - before
		}
		var got []int
		acme := atlas.WithTenant(ctx, atlas.Tenant{Profile: "acme"})
		got = append(got, start(ctx, jwtOf("org", 0)))  // half of 16
		got = append(got, start(ctx, jwtOf("org", 1)))  // the same org
		got = append(got, start(ctx, jwtOf(madeUp, 0))) // half of what is left
		got = append(got, start(ctx, jwtOf(madeUp, 1))) // no tenant of its own
		got = append(got, start(acme, "j.w.t"))         // half of what is left
		got = append(got, start(acme, "j.w.t2"))        // the same profile
		if want := []int{8, 0, 4, 0, 2, 0}; !slices.Equal(got, want) {
			t.Errorf("of 16 slots, tenants got %v, want %v", got, want)
		}
		cancel()
		calls.Wait()
	})
}
