package tokencache

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// newOverlapGroup returns a group that knows a latency of 32 ms, and so sends calls 8 ms apart.
func newOverlapGroup(t *testing.T) *testGroup {
	t.Helper()
	tg := newTestGroup(t, time.Minute)
	tg.latency = 32 * ms
	return tg
}

// sharedCall is a call that ends when the test says so.
type sharedCall struct {
	began atomic.Bool
	end   chan ending
	ctx   context.Context // when it has begun
}

func (f *sharedCall) call(ctx context.Context, _ bool) (Result, error) {
	f.ctx = ctx
	f.began.Store(true)
	select {
	case e := <-f.end:
		return Result{Token: e.token}, e.err
	case <-ctx.Done():
		return Result{}, ctx.Err()
	}
}

// joinCall adds a caller, and returns the call that is made if it is the first to wait for one.
func (tg *testGroup) joinCall() (*waiter, *sharedCall) {
	f := &sharedCall{end: make(chan ending)}
	return tg.arrive(1, f.call), f
}

func (f *sharedCall) wantBegan(t *testing.T, want bool) {
	t.Helper()
	synctest.Wait()
	if got := f.began.Load(); got != want {
		t.Errorf("the call has begun: %v, want %v", got, want)
	}
}

// TestCallsOverlap sends the next call while the first is in flight. A caller joins only a call
// that has not been sent.
func TestCallsOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := newOverlapGroup(t)
		first, one := tg.joinCall()
		second, two := tg.joinCall()
		after(8*ms - 1)
		two.wantBegan(t, false)
		third, _ := tg.joinCall()
		after(1)
		two.wantBegan(t, true)
		late, three := tg.joinCall()
		after(100 * ms) // until the others are overdue
		three.wantBegan(t, true)

		two.end <- ending{token: "two"}
		second.want(t, "two", nil)
		third.want(t, "two", nil)
		synctest.Wait()
		if first.answered() || late.answered() {
			t.Fatal("a caller got the answer to another call")
		}
		three.end <- ending{err: errCrash}
		late.want(t, "", errCrash)
		one.end <- ending{token: "one"}
		first.want(t, "one", nil)
		if second.result.Status.Collapsed || !third.result.Status.Collapsed {
			t.Error("only waiters other than the first are collapsed")
		}
	})
}

// TestNoOverlapBeforeLatencyIsKnown sends calls one after another until one has succeeded. Failures
// and hits do not tell the latency.
func TestNoOverlapBeforeLatencyIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := newTestGroup(t, time.Hour)
		for _, l := range []ended{{err: errCrash}, {hit: true}, {}} {
			first, one := tg.joinCall()
			_, two := tg.joinCall()
			after(time.Minute)
			two.wantBegan(t, false)
			f := one.end
			if l.hit {
				first.leave()
				_, _ = tg.join(t.Context(), key{2}, false, func(context.Context, bool) (Result, error) {
					after(time.Minute)
					return Result{Token: "hit", Status: Status{Hit: true}}, nil
				})
				synctest.Wait()
			} else {
				f <- ending{token: "one", err: l.err}
			}
			two.wantBegan(t, true)
			two.end <- ending{err: errCrash}
			synctest.Wait()
		}
		if tg.latency != time.Minute {
			t.Errorf("a call takes %v, want a minute", tg.latency)
		}
		_, _ = tg.joinCall()
		_, two := tg.joinCall()
		after(15 * time.Second)
		two.wantBegan(t, true)
	})
}

// TestHangingCalls sends calls past those that hang, up to maxInFlight.
func TestHangingCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := newOverlapGroup(t)
		_, hung := tg.joinCall()
		for range maxInFlight - 1 {
			_, next := tg.joinCall()
			after(8 * ms)
			next.wantBegan(t, true)
		}
		_, last := tg.joinCall()
		after(time.Second)
		last.wantBegan(t, false)
		hung.end <- ending{err: errCrash}
		last.wantBegan(t, true)
	})
}

// TestLeavingCancelsOneCall cancels the call whose last waiter leaves, and no other.
func TestLeavingCancelsOneCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := newOverlapGroup(t)
		first, one := tg.joinCall()
		second, two := tg.joinCall()
		after(8 * ms)
		two.wantBegan(t, true)
		second.leave()
		second.want(t, "", context.Canceled)
		synctest.Wait()
		if two.ctx.Err() == nil || one.ctx.Err() != nil {
			t.Error("leaving the second call should have ended that alone")
		}
		third, three := tg.joinCall()
		fourth, four := tg.joinCall()
		third.leave() // the fourth is still there
		after(8 * ms)
		three.wantBegan(t, true)
		four.wantBegan(t, false)
		one.end <- ending{token: "one"}
		first.want(t, "one", nil)
		three.end <- ending{token: "three"}
		fourth.want(t, "three", nil)
	})
}

func TestCloseEndsOverlappingCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := newOverlapGroup(t)
		var waiting []*waiter
		for range maxInFlight + 1 {
			p, _ := tg.joinCall()
			q, _ := tg.joinCall()
			r, _ := tg.joinCall()
			waiting = append(waiting, p, q, r)
			after(8 * ms)
		}
		last, _ := tg.joinCall() // for a timer, if one of those in flight were not there
		tg.close()
		for _, p := range append(waiting, last) {
			p.want(t, "", context.Canceled)
		}
		if _, err := tg.create(t.Context(), request{key: key{1}}); !errors.Is(err, errClosed) {
			t.Errorf("after close: %v, want errClosed", err)
		}
		after(time.Hour) // nothing begins after that
	})
}

// slowAtlas answers after the latency, varied at random by jitter, and counts.
type slowAtlas struct {
	latency time.Duration
	jitter  float64 // the share

	creates, inFlight, most atomic.Int64
}

func (s *slowAtlas) CreateEphemeralToken(ctx context.Context, _ atlas.JWT) (atlas.Token, error) {
	s.creates.Add(1)
	n := s.inFlight.Add(1)
	defer s.inFlight.Add(-1)
	for most := s.most.Load(); n > most && !s.most.CompareAndSwap(most, n); {
		most = s.most.Load()
	}
	select {
	case <-time.After(s.latency + time.Duration(s.jitter*(2*rand.Float64()-1)*float64(s.latency))):
		return "token", nil
	case <-ctx.Done():
		return "", &atlas.Error{Op: atlas.OpCreate, Kind: atlas.KindCanceled, Err: ctx.Err()}
	}
}

// DeleteEphemeralToken takes a second.
func (s *slowAtlas) DeleteEphemeralToken(context.Context, atlas.JWT) error {
	<-time.After(time.Second)
	return nil
}

func (s *slowAtlas) reset() {
	s.creates.Store(0)
	s.most.Store(0)
}

// TestOverlapWithCache sends one call for all callers that the cache will answer. Calls with
// noCache overlap as usual.
func TestOverlapWithCache(t *testing.T) {
	jwt, other := newJWT(orgA, "u", time.Time{}), newJWT(orgA, "other", time.Time{})
	for name, tc := range map[string]struct {
		cred     atlas.JWT
		fresh    bool
		overlaps bool
	}{
		"cached":   {cred: jwt},
		"no-cache": {cred: jwt, fresh: true, overlaps: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				slow := &slowAtlas{latency: 32 * ms}
				c, err := New(slow, Config{TTL: time.Hour})
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				create := func(fresh bool) {
					if _, err := c.Create(context.Background(), own(tc.cred), fresh); err != nil {
						t.Error(err)
					}
				}
				_, _ = c.Create(t.Context(), own(other), false) // accepted
				slow.reset()
				for range 100 {
					go create(tc.fresh)
					go create(tc.fresh)
					after(ms)
				}
				after(time.Second)
				creates, most := slow.creates.Load(), slow.most.Load()
				if overlaps := most > 1; overlaps != tc.overlaps || creates > 20 || !overlaps && creates != 1 {
					t.Errorf("%d calls for 200 callers, %d at a time; want overlapping: %v", creates, most, tc.overlaps)
				}
			})
		})
	}
}

// TestAnswerDoesNotEndHoldOff keeps a credential throttled when an overlapping call that was sent
// earlier succeeds.
func TestAnswerDoesNotEndHoldOff(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, d *testCache) {
		d.calls.latency = 32 * ms
		jwt := newJWT(orgA, "u", time.Time{})
		older, younger := newSteppedCall(), newSteppedCall()
		first := begin(func() { _, _ = d.Create(t.Context(), own(jwt), false, older.ask(d.world.ask(jwt))) })
		second := begin(func() {
			_, err := d.Create(t.Context(), own(jwt), false, younger.ask(func(context.Context) (Answer, error) {
				return Answer{}, throttled(atlas.OpCreate, 7*time.Second)
			}))
			if err == nil || errors.Is(err, errHeldOff) {
				t.Errorf("got %v, want Atlas's error", err)
			}
		})
		after(8 * ms)
		close(older.effect)
		close(younger.effect)
		close(younger.answer)
		<-second
		for range 2 {
			if _, err := d.create(jwt); !errors.Is(err, errHeldOff) {
				t.Errorf("got %v, want what Atlas said", err)
			}
			if !isClosed(first) {
				close(older.answer)
				<-first
			}
		}
	})
}

// TestSenderIsNotTheOnlyWaiter lets the caller whose arrival sends a call leave. The latency that
// allows it was learnt from another credential while a caller waited.
func TestSenderIsNotTheOnlyWaiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := newTestGroup(t, time.Hour)
		first := tg.arrive(1, tg.call)
		second := tg.arrive(1, tg.call)
		own := make(chan ending)
		other := tg.arrive(2, func(context.Context, bool) (Result, error) { return Result{Token: (<-own).token}, nil })
		after(100 * ms)
		own <- ending{token: "other"}
		other.want(t, "other", nil)
		after(100 * ms)
		third := tg.arrive(1, tg.call)
		if n := tg.began.Load(); n != 2 {
			t.Fatalf("%d calls were sent, want 2", n)
		}
		third.leave()
		third.want(t, "", context.Canceled)
		tg.end <- ending{token: "a"}
		tg.end <- ending{token: "a"}
		first.want(t, "a", nil)
		second.want(t, "a", nil)
	})
}
