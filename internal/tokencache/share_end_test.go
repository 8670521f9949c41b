package tokencache

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// TestPanicReachesEveryWaiter panics in every waiter if the call panics or ends its goroutine. The
// first caller runs its call itself, and so its goroutine ends. The queue continues.
func TestPanicReachesEveryWaiter(t *testing.T) {
	for name, tc := range map[string]struct {
		crash       func()
		first, want any
	}{
		"panic":  {func() { panic("boom") }, "boom", "boom"},
		"goexit": {runtime.Goexit, nil, errGoexit},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tg := newTestGroup(t, time.Minute)
				crash := func(context.Context, bool) (Result, error) {
					<-tg.end
					tc.crash()
					return Result{Token: "none"}, nil
				}
				inFlight := tg.arrive(1, crash)
				waiting := []*waiter{tg.arrive(1, crash), tg.arrive(1, crash)}
				tg.end <- ending{}
				<-inFlight.done
				synctest.Wait()
				after := tg.arrive(1, tg.call)
				tg.end <- ending{}
				if inFlight.panics != tc.first {
					t.Errorf("the first caller: panic %v, want %v", inFlight.panics, tc.first)
				}
				for i, p := range waiting {
					<-p.done
					if p.panics != tc.want {
						t.Errorf("caller %d: panic %v, want %v", i, p.panics, tc.want)
					}
				}
				tg.end <- ending{token: "good"}
				after.want(t, "good", nil)
			})
		})
	}
}

func TestNoCacheAppliesToSharedCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := newTestGroup(t, time.Minute)
		inFlight := tg.arrive(1, tg.call)
		var got []bool
		call := func(_ context.Context, fresh bool) (Result, error) {
			got = append(got, fresh)
			return Result{}, nil
		}
		var all sync.WaitGroup
		for _, fresh := range []bool{false, true, false} {
			all.Go(func() { _, _ = tg.join(t.Context(), key{1}, fresh, call) })
			synctest.Wait()
		}
		tg.end <- ending{token: "one"}
		inFlight.want(t, "one", nil)
		all.Wait()
		_, _ = tg.join(t.Context(), key{1}, false, call)
		if len(got) != 2 || !got[0] || got[1] {
			t.Errorf("fresh of the flights: %v, want [true false]", got)
		}
	})
}

func TestCallTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := newTestGroup(t, 7*time.Second)
		start := time.Now()
		p := tg.arrive(1, tg.call)
		p.want(t, "", context.DeadlineExceeded)
		if took := time.Since(start); took != 7*time.Second {
			t.Errorf("took %v, want 7s", took)
		}
	})
}

// TestCallHasLongestDeadline gives a call the latest deadline of its waiters, so that the layers
// below know how much time is left.
func TestCallHasLongestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := newTestGroup(t, time.Minute)
		inFlight := tg.arrive(1, tg.call) // for as long as it takes
		left := make(chan time.Duration, 2)
		look := func(ctx context.Context, _ bool) (Result, error) {
			deadline, _ := ctx.Deadline()
			left <- time.Until(deadline)
			return Result{}, nil
		}
		var all sync.WaitGroup
		arrive := func(ctx context.Context) {
			all.Go(func() { _, _ = tg.join(ctx, key{1}, false, look) })
			synctest.Wait()
		}
		for _, patience := range []time.Duration{2 * time.Second, 5 * time.Second, time.Second} {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			t.Cleanup(cancel)
			arrive(ctx)
		}
		tg.end <- ending{token: "one"}
		inFlight.want(t, "one", nil)
		all.Wait()
		if got := <-left; got != 5*time.Second {
			t.Errorf("the call has %v, want the 5s of the longest waiter", got)
		}

		for _, hurriedFirst := range []bool{true, false} {
			inFlight = tg.arrive(1, tg.call)
			hurried, cancel := context.WithTimeout(t.Context(), time.Second)
			t.Cleanup(cancel)
			waiters := []context.Context{hurried, context.Background()}
			if !hurriedFirst {
				slices.Reverse(waiters)
			}
			for _, ctx := range waiters {
				arrive(ctx)
			}
			tg.end <- ending{token: "two"}
			inFlight.want(t, "two", nil)
			all.Wait()
			if got := <-left; got != time.Minute {
				t.Errorf("with one in a hurry first, %t: the call has %v, want the 1m0s of the group", hurriedFirst, got)
			}
		}
	})
}

// TestFault87StaleTokenIsForThoseThatAcceptOne returns the stale token to the callers of a shared
// call that accept one, and Atlas's error to the others.
func TestFault87StaleTokenIsForThoseThatAcceptOne(t *testing.T) {
	bubble(t, Config{TTL: time.Second, StaleIfError: time.Hour}, func(t *testing.T, d *testCache) {
		jwt := newJWT(orgA, "u", time.Time{})
		d.want(jwt, miss)
		after(2 * time.Second)
		s := newSteppedCall()
		first := begin(func() { _, _ = d.Create(t.Context(), own(jwt), false, s.ask(d.world.ask(jwt))) })
		d.world.failing(statusError(atlas.OpCreate, 503))
		var all []<-chan struct{}
		for i := range 10 {
			noCache := i == 3
			all = append(all, begin(func() {
				result, err := d.Cache.Create(t.Context(), own(jwt), noCache)
				if noCache != (err != nil) || noCache == result.Status.Stale || (result.Token == "") != noCache {
					t.Errorf("no-cache %t: got %q, %s, %v", noCache, string(result.Token), result.Status, err)
				}
			}))
		}
		close(s.effect)
		close(s.answer)
		<-first
		for _, done := range all {
			<-done
		}
	})
}
