package tokencache

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// A call that panics, or that ends its goroutine, does so for everybody aboard, and the line goes on. The first caller runs his
// call himself.
func TestACrash(t *testing.T) {
	for name, tc := range map[string]struct {
		crash func()
		first any
		want  any
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
				flying := tg.arrive(1, crash)
				aboard := []*waiter{tg.arrive(1, crash), tg.arrive(1, crash)}
				tg.end <- ending{}
				<-flying.done
				synctest.Wait()
				after := tg.arrive(1, tg.call)
				tg.end <- ending{}
				if flying.panics != tc.first {
					t.Errorf("the first caller: panic %v, want %v", flying.panics, tc.first)
				}
				for i, p := range aboard {
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

// TestEndBeforeACallBegins: a call that has left, and has yet to be run, ends at once if all is closed by then, or nobody waits for it.
func TestEndBeforeACallBegins(t *testing.T) {
	for name, end := range map[string]func(*testGroup, *call){
		"closed":   func(tg *testGroup, _ *call) { tg.close() },
		"deserted": func(tg *testGroup, c *call) { tg.leave(key{1}, c) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tg := newTestGroup(t, time.Minute)
				r := request{cred: atlas.Credential{JWT: "a.b.c", Secret: tg.layer.bring(tg.call)}, key: key{1}}
				c, leads, _, err := tg.group.join(t.Context(), r)
				if leads == nil || err != nil {
					t.Fatalf("the first caller does not lead: %v", err)
				}
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					end(tg, c)
				}()
				synctest.Wait()
				if name == "closed" && isClosed(ended) {
					t.Error("close did not wait for the call")
				}
				start := time.Now()
				if _, err := tg.lead(t.Context(), leads, c); !errors.Is(err, context.Canceled) || time.Since(start) > 0 {
					t.Errorf("got %v after %v", err, time.Since(start))
				}
				<-ended
			})
		})
	}
}

// TestALeaderWhoLeaves: whoever runs a call himself gets its answer, even if he has left by then; if there is none, he is told that he left.
func TestALeaderWhoLeaves(t *testing.T) {
	tg := newTestGroup(t, time.Minute)
	for _, tc := range []struct{ ends, want error }{{nil, nil}, {errors.New("it went away"), context.Canceled}} {
		ctx, leave := context.WithCancel(t.Context())
		got, err := tg.join(ctx, key{1}, false, func(context.Context, bool) (Result, error) {
			leave()
			return Result{Token: "one"}, tc.ends
		})
		if !errors.Is(err, tc.want) || (got.Token == "one") != (err == nil) {
			t.Errorf("of a call that ended with %v: got %q, %v", tc.ends, string(got.Token), err)
		}
	}
}

func TestACallHasATimeout(t *testing.T) {
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

// What is begun for the last time that anybody has, ends with that: so what is below knows how much is left.
func TestACallHasTheLongestDeadlineOfItsWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := newTestGroup(t, time.Minute)
		flying := tg.arrive(1, tg.call) // for as long as it takes
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
		flying.want(t, "one", nil)
		all.Wait()
		if got := <-left; got != 5*time.Second {
			t.Errorf("the call has %v, want the 5s of the longest waiter", got)
		}

		for _, hurriedFirst := range []bool{true, false} {
			flying = tg.arrive(1, tg.call)
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
			flying.want(t, "two", nil)
			all.Wait()
			if got := <-left; got != time.Minute {
				t.Errorf("with one in a hurry first, %t: the call has %v, want the 1m0s of the group", hurriedFirst, got)
			}
		}
	})
}
