package tokencache

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A call that panics, or that ends its goroutine, does so for everybody aboard, and the line goes on.
func TestACrash(t *testing.T) {
	for name, tc := range map[string]struct {
		crash func()
		want  any
	}{
		"panic":  {func() { panic("boom") }, "boom"},
		"goexit": {runtime.Goexit, errGoexit},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tg := newTestGroup(t, time.Minute)
				crash := func(context.Context, bool) (Result, error) {
					<-tg.end
					tc.crash()
					return Result{Token: "none"}, nil
				}
				flying := tg.arrive(1, crash)
				aboard := []*waiter{tg.arrive(1, crash), tg.arrive(1, crash)}
				tg.end <- ending{}
				<-flying.done
				synctest.Wait()
				after := tg.arrive(1, tg.call)
				tg.end <- ending{}
				for i, p := range append(aboard, flying) {
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

func TestFreshOfOneIsFreshOfTheFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := newTestGroup(t, time.Minute)
		flying := tg.arrive(1, tg.call)
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
		flying.want(t, "one", nil)
		all.Wait()
		_, _ = tg.join(t.Context(), key{1}, false, call)
		if len(got) != 2 || !got[0] || got[1] {
			t.Errorf("fresh of the flights: %v, want [true false]", got)
		}
	})
}

func TestCloseEndsFlights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := newTestGroup(t, time.Minute)
		var waiting []*waiter
		for name := range byte(3) {
			waiting = append(waiting, tg.arrive(name, tg.call), tg.arrive(name, tg.call))
		}
		tg.close()
		for _, p := range waiting {
			p.want(t, "", context.Canceled)
		}
		if _, err := tg.join(t.Context(), key{1}, false, tg.call); !errors.Is(err, errClosed) {
			t.Errorf("after close: %v, want errClosed", err)
		}
	})
}
