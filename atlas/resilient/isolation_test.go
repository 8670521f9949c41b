package resilient_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// besideOthers runs a tenant in trouble beside ten ordinary orgs, which must not notice it.
func besideOthers(t *testing.T, setUp func(a *simulated), trouble func(ctx context.Context, tr *traffic)) {
	t.Helper()
	const duration = 10 * time.Second
	synctest.Test(t, func(t *testing.T) {
		a := newSimulated()
		setUp(a)
		tr := newTraffic(t, newClient(t, a))
		ctx, cancel := context.WithTimeout(t.Context(), duration)
		defer cancel()
		tr.one("before", atlas.OpCreate, jwtOf("trouble", 0), time.Second)
		tr.others(ctx)
		opened := 0
		tr.calls.Go(func() {
			for ctx.Err() == nil {
				wait(100 * time.Millisecond)
				if tr.client.Stats().Open {
					opened++
				}
			}
		})
		trouble(ctx, tr)
		tr.calls.Wait()
		others := tr.of("others")
		t.Logf("others: %v; trouble: %v; breaker open for %v", others, tr.of("trouble"), time.Duration(opened)*100*time.Millisecond)
		if n := others.failures(); n > 0 {
			t.Errorf("%d of %d calls of others failed", n, n+others.ok)
		}
		if others.most > 100*time.Millisecond {
			t.Errorf("a call of others took %v: it waited", others.most)
		}
		if opened > 0 {
			t.Error("the breaker opened")
		}
	})
}

// One tenant's calls all fail, at once or over and over: the others notice nothing.
func TestFault66FailingTenant(t *testing.T) {
	for name, fail := range map[string]*atlas.Error{
		"500":   status(500),
		"reset": {Kind: atlas.KindUnreachable, Sent: true},
	} {
		for _, rate := range []int{5, 50, 500} {
			t.Run(fmt.Sprintf("%s at %d a second", name, rate), func(t *testing.T) {
				besideOthers(t, func(a *simulated) { a.does("trouble", fails(fail, 10*time.Millisecond)) },
					func(ctx context.Context, tr *traffic) {
						tr.perSecond(ctx, rate, func(int) {
							tr.one("trouble", atlas.OpCreate, jwtOf("trouble", 0), 2*time.Second)
						})
					})
			})
		}
	}
}

// The only tenant that calls at present fails. Those that call once in a while still find the
// breaker closed.
func TestFault66OthersCallRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newSimulated()
		a.does("trouble", fails(status(500), 10*time.Millisecond))
		tr := newTraffic(t, newClient(t, a))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		tr.perSecond(ctx, 20, func(int) {
			tr.one("trouble", atlas.OpCreate, jwtOf("trouble", 0), 2*time.Second)
		})
		for ctx.Err() == nil {
			wait(time.Minute)
			tr.one("others", atlas.OpCreate, jwtOf("other", 0), 2*time.Second)
		}
		tr.calls.Wait()
		t.Logf("others: %v; trouble: %v", tr.of("others"), tr.of("trouble"))
		if n := tr.of("others").failures(); n > 0 {
			t.Errorf("%d calls of others failed", n)
		}
	})
}

// One tenant's calls all fail and would be retried. The others' retries, which they need once in
// twenty calls, are still made.
func TestFault66RetryBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dice := rand.New(rand.NewPCG(1, 1))
		var mu sync.Mutex
		a := newSimulated()
		a.does("trouble", fails(status(500), 10*time.Millisecond))
		a.does("", func(ctx context.Context) error {
			mu.Lock()
			fail := dice.IntN(20) == 0
			mu.Unlock()
			if fail {
				return fails(status(503), 10*time.Millisecond)(ctx)
			}
			return takes(10 * time.Millisecond)(ctx)
		})
		tr := newTraffic(t, newClient(t, a))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		tr.perSecond(ctx, 20, func(int) {
			tr.one("trouble", atlas.OpCreate, jwtOf("trouble", 0), 2*time.Second)
		})
		tr.others(ctx)
		tr.calls.Wait()
		others := tr.of("others")
		t.Logf("others: %v; trouble: %v", others, tr.of("trouble"))
		if n, total := others.failures(), others.ok+others.failures(); n > total/100 {
			t.Errorf("%d of %d calls of others failed", n, total)
		}
	})
}

// 16 callers of an org whose calls take 3 s give up after 2 s, over and over.
func TestFault67SlowTenant(t *testing.T) {
	besideOthers(t, func(a *simulated) { a.does("trouble", takes(3*time.Second)) },
		func(ctx context.Context, tr *traffic) {
			for range 16 {
				tr.calls.Go(func() {
					for ctx.Err() == nil {
						if !tr.one("trouble", atlas.OpCreate, jwtOf("trouble", 0), 2*time.Second) {
							wait(10 * time.Millisecond) // in case it was refused at once
						}
					}
				})
			}
		})
}

// 50 users of one org, each with a JWT of its own, begin a create a second, and each takes 5 s.
func TestFault67ManyUsersOfOneOrg(t *testing.T) {
	besideOthers(t, func(a *simulated) { a.does("trouble", takes(5*time.Second)) },
		func(ctx context.Context, tr *traffic) {
			tr.perSecond(ctx, 50, func(n int) {
				tr.one("trouble", atlas.OpCreate, jwtOf("trouble", n%50), 10*time.Second)
			})
		})
}

// One tenant hangs with as many calls as it can make.
func TestFault67HangingTenant(t *testing.T) {
	besideOthers(t, func(a *simulated) {
		a.does("trouble", fails(&atlas.Error{Kind: atlas.KindTimeout, Sent: true}, 10*time.Second))
	}, func(ctx context.Context, tr *traffic) {
		tr.perSecond(ctx, 500, func(n int) {
			tr.one("trouble", atlas.OpCreate, jwtOf("trouble", n%50), 30*time.Second)
		})
	})
}

// One caller sends deletes as fast as it may, each of which takes 100 ms.
func TestFault68Deletes(t *testing.T) {
	besideOthers(t, func(a *simulated) { a.does("trouble", takes(100*time.Millisecond)) },
		func(ctx context.Context, tr *traffic) {
			tr.perSecond(ctx, 2000, func(int) {
				tr.one("trouble", atlas.OpDelete, jwtOf("trouble", 0), 2*time.Second)
			})
		})
}

// 30,000 JWTs a second that Atlas does not accept: they share one tenant, and those that it has
// accepted notice nothing.
func TestFault69MadeUpJWTs(t *testing.T) {
	besideOthers(t, func(a *simulated) { a.does(madeUp, fails(status(401), 50*time.Millisecond)) },
		func(ctx context.Context, tr *traffic) {
			short, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			tr.perSecond(short, 30_000, func(n int) {
				tr.one("trouble", atlas.OpCreate, jwtOf(madeUp, n), 2*time.Second)
			})
			<-short.Done()
		})
}
