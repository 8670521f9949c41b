package tokencache

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// ending is the outcome of a shared call.
type ending struct {
	token atlas.Token
	err   error
}

// createFunc is what a shared call does.
type createFunc = func(ctx context.Context, fresh bool) (Result, error)

// createLayer is the layer below a group. The first waiter of a call decides what the call does.
// The secret in its credential, which is otherwise empty, identifies that waiter.
type createLayer struct {
	mu      sync.Mutex
	brought map[atlas.UserAuthToken]createFunc // guarded by mu
}

func newCreateLayer() *createLayer {
	return &createLayer{brought: map[atlas.UserAuthToken]createFunc{}}
}

func (l *createLayer) bring(f createFunc) (ticket atlas.UserAuthToken) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ticket = atlas.UserAuthToken(strconv.Itoa(len(l.brought)))
	l.brought[ticket] = f
	return ticket
}

func (l *createLayer) create(ctx context.Context, r request) (Result, error) {
	l.mu.Lock()
	f := l.brought[r.cred.Secret]
	l.mu.Unlock()
	return f(ctx, r.noCache)
}

func (l *createLayer) delete(context.Context, request) (string, error) { return "", nil }

// testGroup lets a test decide when each shared call ends.
type testGroup struct {
	*group
	layer *createLayer
	began atomic.Int64
	end   chan ending
}

func newTestGroup(t *testing.T, timeout time.Duration) *testGroup {
	t.Helper()
	layer := newCreateLayer()
	tg := &testGroup{group: newGroup(layer, timeout), layer: layer, end: make(chan ending)}
	t.Cleanup(func() {
		tg.close()
		if len(tg.queues) != 0 {
			t.Errorf("%d calls are left", len(tg.queues))
		}
	})
	return tg
}

// join waits for a shared call of k.
func (tg *testGroup) join(ctx context.Context, k key, fresh bool, f createFunc) (Result, error) {
	cred := atlas.Credential{JWT: atlas.JWT(k[:]), Secret: tg.layer.bring(f)}
	return tg.create(ctx, request{cred: cred, key: k, noCache: fresh})
}

// call ends when the test says so, or with its context.
func (tg *testGroup) call(ctx context.Context, _ bool) (Result, error) {
	tg.began.Add(1)
	select {
	case l := <-tg.end:
		return Result{Token: l.token}, l.err
	case <-ctx.Done():
		return Result{}, ctx.Err()
	}
}

// waiter is one caller.
type waiter struct {
	done   chan struct{}
	result Result
	err    error
	panics any
	leave  context.CancelFunc
}

func (tg *testGroup) arrive(name byte, f createFunc) *waiter {
	p := &waiter{done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	p.leave = cancel
	go func() {
		defer close(p.done)
		defer cancel()
		defer func() { p.panics = recover() }()
		p.result, p.err = tg.join(ctx, key{name}, false, f)
	}()
	synctest.Wait()
	return p
}

func (p *waiter) answered() bool { return isClosed(p.done) }

func isClosed(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

func (p *waiter) want(t *testing.T, token atlas.Token, err error) {
	t.Helper()
	<-p.done
	if p.result.Token != token || !errors.Is(p.err, err) || p.panics != nil {
		t.Errorf("got %q, %v, panic %v; want %q, %v", string(p.result.Token), p.err, p.panics, string(token), err)
	}
}

func TestLaterCallersShareNextCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := newTestGroup(t, time.Minute)
		first := tg.arrive(1, tg.call)
		second, third := tg.arrive(1, tg.call), tg.arrive(1, tg.call)
		tg.end <- ending{token: "one"}
		first.want(t, "one", nil)
		synctest.Wait()
		if second.answered() || third.answered() {
			t.Fatal("a caller got the answer to a call that began before it arrived")
		}
		tg.end <- ending{token: "two"}
		second.want(t, "two", nil)
		third.want(t, "two", nil)
		for name, tc := range map[string]struct {
			p         *waiter
			collapsed bool
		}{"first": {first, false}, "second": {second, false}, "third": {third, true}} {
			if got := tc.p.result.Status.Collapsed; got != tc.collapsed {
				t.Errorf("%s: collapsed is %v, want %v", name, got, tc.collapsed)
			}
		}
		if n := tg.began.Load(); n != 2 {
			t.Errorf("%d calls, want 2", n)
		}
	})
}

func TestThousandCallersCostTwoCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := newTestGroup(t, time.Minute)
		var all sync.WaitGroup
		var calls atomic.Int64
		for range 1000 {
			all.Go(func() {
				result, err := tg.join(t.Context(), key{1}, false, func(context.Context, bool) (Result, error) {
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

func TestKeysAreIndependent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := newTestGroup(t, time.Minute)
		start := time.Now()
		var all sync.WaitGroup
		for i := range 1000 {
			want := atlas.Token(fmt.Sprint(i))
			all.Go(func() {
				result, err := tg.join(t.Context(), key{byte(i), byte(i >> 8)}, false, func(context.Context, bool) (Result, error) {
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
		tg := newTestGroup(t, time.Minute)
		inFlight := tg.arrive(1, tg.call)
		var all sync.WaitGroup
		for _, timeout := range []time.Duration{time.Second, 2 * time.Second, 5 * time.Second} {
			all.Go(func() {
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), timeout)
				defer cancel()
				_, err := tg.join(ctx, key{1}, false, tg.call)
				if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took != timeout {
					t.Errorf("%v after %v, want DeadlineExceeded after %v", err, took, timeout)
				}
			})
		}
		all.Wait()
		tg.end <- ending{token: "one"}
		inFlight.want(t, "one", nil)
		if n := tg.began.Load(); n != 1 {
			t.Errorf("%d calls, want 1: all had left the second", n)
		}
	})
}

func TestLastWaiterCancels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := newTestGroup(t, time.Minute)
		inFlight := tg.arrive(1, tg.call)
		var done <-chan struct{} // of the next call
		recording := func(ctx context.Context, fresh bool) (Result, error) {
			done = ctx.Done()
			return tg.call(ctx, fresh)
		}
		first, last := tg.arrive(1, recording), tg.arrive(1, tg.call)
		tg.end <- ending{token: "one"}
		inFlight.want(t, "one", nil)
		synctest.Wait()

		first.leave()
		first.want(t, "", context.Canceled)
		synctest.Wait()
		if isClosed(done) {
			t.Fatal("the call ended while a caller waited for it")
		}
		last.leave()
		last.want(t, "", context.Canceled)
		synctest.Wait()
		if !isClosed(done) {
			t.Error("the call goes on without a waiter")
		}
	})
}

func TestAbandonedCallIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := newTestGroup(t, time.Minute)
		inFlight := tg.arrive(1, tg.call)
		one, two := tg.arrive(1, tg.call), tg.arrive(1, tg.call)
		one.leave()
		two.leave()
		one.want(t, "", context.Canceled)
		two.want(t, "", context.Canceled)
		late := tg.arrive(1, tg.call) // joins a new call
		if late.answered() {
			t.Fatal("answered before a call")
		}
		tg.end <- ending{token: "one"}
		tg.end <- ending{token: "two"}
		inFlight.want(t, "one", nil)
		late.want(t, "two", nil)
		if n := tg.began.Load(); n != 2 {
			t.Errorf("%d calls, want 2", n)
		}
	})
}

func TestCancelledCallerSendsNothing(t *testing.T) {
	tg := newTestGroup(t, time.Minute)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 {
		if _, err := tg.join(ctx, key{1}, false, tg.call); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v, want Canceled", err)
		}
	}
	tg.close()
	if n := tg.began.Load(); n != 0 {
		t.Errorf("%d calls were begun", n)
	}
}

// TestKeyCollision does not share a call between credentials whose keys collide.
func TestKeyCollision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := newTestGroup(t, time.Minute)
		inFlight, waiting := tg.arrive(1, tg.call), tg.arrive(1, tg.call)
		ticket := tg.layer.bring(func(context.Context, bool) (Result, error) { return Result{Token: "another's"}, nil })
		other := request{cred: atlas.Credential{JWT: "another's", Secret: ticket}, key: key{1}}
		if got, err := tg.create(t.Context(), other); got.Token != "another's" || err != nil {
			t.Errorf("got %q, %v", string(got.Token), err)
		}
		tg.end <- ending{token: "one"}
		inFlight.want(t, "one", nil)
		tg.end <- ending{token: "two"}
		waiting.want(t, "two", nil)
	})
}

func TestFailureReachesWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := newTestGroup(t, time.Minute)
		crash := errors.New("crash")
		inFlight := tg.arrive(1, tg.call)
		waiting := []*waiter{tg.arrive(1, tg.call), tg.arrive(1, tg.call)}
		tg.end <- ending{token: "one"}
		inFlight.want(t, "one", nil)
		synctest.Wait()
		next := tg.arrive(1, tg.call)
		tg.end <- ending{err: crash}
		for _, p := range waiting {
			p.want(t, "", crash)
		}
		tg.end <- ending{token: "three"}
		next.want(t, "three", nil)
		if n := tg.began.Load(); n != 3 {
			t.Errorf("%d calls, want 3", n)
		}
	})
}
