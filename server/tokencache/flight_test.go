package tokencache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// landing is what a test lets a shared call end with.
type landing struct {
	token atlas.Token
	err   error
}

// tower lets a test decide when each shared call ends.
type tower struct {
	*flights
	began atomic.Int64
	land  chan landing
}

func newTower(t *testing.T, timeout time.Duration) *tower {
	t.Helper()
	tw := &tower{flights: newFlights(timeout), land: make(chan landing)}
	t.Cleanup(func() {
		tw.close()
		if len(tw.lines) != 0 {
			t.Errorf("%d lines are left", len(tw.lines))
		}
	})
	return tw
}

// call ends when the test says so, or with its context.
func (tw *tower) call(ctx context.Context, _ bool) (Result, error) {
	tw.began.Add(1)
	select {
	case l := <-tw.land:
		return Result{Token: l.token}, l.err
	case <-ctx.Done():
		return Result{}, ctx.Err()
	}
}

// passenger is one caller.
type passenger struct {
	done   chan struct{}
	result Result
	err    error
	panics any
	leave  context.CancelFunc
}

func (tw *tower) arrive(name byte, call func(context.Context, bool) (Result, error)) *passenger {
	p := &passenger{done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	p.leave = cancel
	go func() {
		defer close(p.done)
		defer cancel()
		defer func() { p.panics = recover() }()
		p.result, p.err = tw.join(ctx, key{name}, false, call)
	}()
	synctest.Wait()
	return p
}

func (p *passenger) answered() bool { return isClosed(p.done) }

func isClosed(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

func (p *passenger) want(t *testing.T, token atlas.Token, err error) {
	t.Helper()
	<-p.done
	if p.result.Token != token || !errors.Is(p.err, err) || p.panics != nil {
		t.Errorf("got %q, %v, panic %v; want %q, %v", string(p.result.Token), p.err, p.panics, string(token), err)
	}
}

func TestLaterCallersShareTheNextFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tw := newTower(t, time.Minute)
		first := tw.arrive(1, tw.call)
		second, third := tw.arrive(1, tw.call), tw.arrive(1, tw.call)
		tw.land <- landing{token: "one"}
		first.want(t, "one", nil)
		synctest.Wait()
		if second.answered() || third.answered() {
			t.Fatal("a caller was given the answer to a call that had begun before it came")
		}
		tw.land <- landing{token: "two"}
		second.want(t, "two", nil)
		third.want(t, "two", nil)
		for name, tc := range map[string]struct {
			p         *passenger
			collapsed bool
		}{"first": {first, false}, "second": {second, false}, "third": {third, true}} {
			if got := tc.p.result.Status.Collapsed; got != tc.collapsed {
				t.Errorf("%s: collapsed is %v, want %v", name, got, tc.collapsed)
			}
		}
		if n := tw.began.Load(); n != 2 {
			t.Errorf("%d calls, want 2", n)
		}
	})
}

func TestAThousandCallersOfOneKeyCostTwoCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tw := newTower(t, time.Minute)
		var all sync.WaitGroup
		var calls atomic.Int64
		for range 1000 {
			all.Go(func() {
				result, err := tw.join(t.Context(), key{1}, false, func(context.Context, bool) (Result, error) {
					calls.Add(1)
					<-time.After(time.Second)
					return Result{Token: "one"}, nil
				})
				if err != nil || result.Token != "one" {
					t.Errorf("got %q, %v", string(result.Token), err)
				}
			})
		}
		all.Wait()
		if n := calls.Load(); n > 2 {
			t.Errorf("%d calls, want at most 2", n)
		}
	})
}

func TestKeysDoNotWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tw := newTower(t, time.Minute)
		start := time.Now()
		var all sync.WaitGroup
		for i := range 1000 {
			want := atlas.Token(fmt.Sprint(i))
			all.Go(func() {
				result, err := tw.join(t.Context(), key{byte(i), byte(i >> 8)}, false, func(context.Context, bool) (Result, error) {
					<-time.After(time.Second)
					return Result{Token: want}, nil
				})
				if err != nil || result.Token != want {
					t.Errorf("got %q, %v; want %q", string(result.Token), err, string(want))
				}
			})
		}
		all.Wait()
		if took := time.Since(start); took != time.Second {
			t.Errorf("took %v, want one second for all together", took)
		}
	})
}

func TestEachWaiterKeepsItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tw := newTower(t, time.Minute)
		flying := tw.arrive(1, tw.call)
		var all sync.WaitGroup
		for _, patience := range []time.Duration{time.Second, 2 * time.Second, 5 * time.Second} {
			all.Go(func() {
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				_, err := tw.join(ctx, key{1}, false, tw.call)
				if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took != patience {
					t.Errorf("%v after %v, want DeadlineExceeded after %v", err, took, patience)
				}
			})
		}
		all.Wait()
		tw.land <- landing{token: "one"}
		flying.want(t, "one", nil)
		if n := tw.began.Load(); n != 1 {
			t.Errorf("%d calls, want 1: everybody had left the second", n)
		}
	})
}

func TestOnlyTheLastToLeaveCancels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tw := newTower(t, time.Minute)
		flying := tw.arrive(1, tw.call)
		var done <-chan struct{} // of the next call
		boarding := func(ctx context.Context, fresh bool) (Result, error) {
			done = ctx.Done()
			return tw.call(ctx, fresh)
		}
		first, last := tw.arrive(1, boarding), tw.arrive(1, tw.call)
		tw.land <- landing{token: "one"}
		flying.want(t, "one", nil)
		synctest.Wait()

		first.leave()
		first.want(t, "", context.Canceled)
		synctest.Wait()
		if isClosed(done) {
			t.Fatal("the call ended while somebody waited for it")
		}
		last.leave()
		last.want(t, "", context.Canceled)
		synctest.Wait()
		if !isClosed(done) {
			t.Error("the call goes on though nobody waits for it")
		}
	})
}

func TestADesertedFlightNeverTakesOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tw := newTower(t, time.Minute)
		flying := tw.arrive(1, tw.call)
		one, two := tw.arrive(1, tw.call), tw.arrive(1, tw.call)
		one.leave()
		two.leave()
		one.want(t, "", context.Canceled)
		two.want(t, "", context.Canceled)
		late := tw.arrive(1, tw.call) // boards one of its own
		if late.answered() {
			t.Fatal("answered before a call")
		}
		tw.land <- landing{token: "one"}
		tw.land <- landing{token: "two"}
		flying.want(t, "one", nil)
		late.want(t, "two", nil)
		if n := tw.began.Load(); n != 2 {
			t.Errorf("%d calls, want 2", n)
		}
	})
}

func TestACallerWhoHasGoneBeginsNothing(t *testing.T) {
	tw := newTower(t, time.Minute)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 {
		if _, err := tw.join(ctx, key{1}, false, tw.call); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v, want Canceled", err)
		}
	}
	tw.close()
	if n := tw.began.Load(); n != 0 {
		t.Errorf("%d calls were begun", n)
	}
}

func TestAFailureGoesToThoseAboard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tw := newTower(t, time.Minute)
		crash := errors.New("crash")
		flying := tw.arrive(1, tw.call)
		aboard := []*passenger{tw.arrive(1, tw.call), tw.arrive(1, tw.call)}
		tw.land <- landing{token: "one"}
		flying.want(t, "one", nil)
		synctest.Wait()
		next := tw.arrive(1, tw.call)
		tw.land <- landing{err: crash}
		for _, p := range aboard {
			p.want(t, "", crash)
		}
		tw.land <- landing{token: "three"}
		next.want(t, "three", nil)
		if n := tw.began.Load(); n != 3 {
			t.Errorf("%d calls, want 3", n)
		}
	})
}

func TestACallHasATimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tw := newTower(t, 7*time.Second)
		start := time.Now()
		p := tw.arrive(1, tw.call)
		p.want(t, "", context.DeadlineExceeded)
		if took := time.Since(start); took != 7*time.Second {
			t.Errorf("took %v, want 7s", took)
		}
	})
}
