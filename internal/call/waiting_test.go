package call

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// testWaiter says what has become of it.
type testWaiter struct {
	place Place
	ended atomic.Int32
	err   error
}

func (w *testWaiter) End()       { w.ended.Add(1) }
func (w *testWaiter) Err() error { return w.err }

// endings is how often each was ended.
func endings(waiters []testWaiter) (all []int32) {
	for i := range waiters {
		all = append(all, waiters[i].ended.Load())
	}
	return all
}

// TestWaiting: who has waited longest makes room, and nobody is ended once its message has arrived.
func TestWaiting(t *testing.T) {
	w := NewWaiting(2, 0)
	waiters := make([]testWaiter, 5)
	for i := range waiters {
		w.Add(&waiters[i].place, &waiters[i])
		if i == 1 {
			w.Remove(&waiters[1].place)
			w.Remove(&waiters[1].place)
		}
	}
	if got, want := endings(waiters), []int32{1, 0, 1, 0, 0}; !slices.Equal(got, want) {
		t.Errorf("ended: %v, want %v", got, want)
	}
	for i := range waiters {
		w.Remove(&waiters[i].place)
	}
	if w.places != (places{}) {
		t.Errorf("left: %+v", w.places)
	}
}

// TestWaitingInAnyOrder: places may be left in any order, and the others keep theirs.
func TestWaitingInAnyOrder(t *testing.T) {
	for _, leave := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		w := NewWaiting(10, 0)
		waiters := make([]testWaiter, 3)
		for i := range waiters {
			w.Add(&waiters[i].place, &waiters[i])
		}
		left := []*Place{&waiters[0].place, &waiters[1].place, &waiters[2].place}
		for _, i := range leave {
			w.Remove(&waiters[i].place)
			left = slices.DeleteFunc(left, func(p *Place) bool { return p == &waiters[i].place })
			var there, back []*Place
			for p := w.places.first; p != nil; p = p.next {
				there = append(there, p)
			}
			for p := w.places.last; p != nil; p = p.prev {
				back = append(back, p)
			}
			slices.Reverse(back)
			if !slices.Equal(there, left) || !slices.Equal(back, left) {
				t.Errorf("%v: after %d left there are %d, or backwards %d", leave, i, len(there), len(back))
			}
		}
	}
}

// TestPatienceWithTheGone: who has gone gives his place up when the first one's patience is over, at the latest, and there is one timer.
func TestPatienceWithTheGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWaiting(10, 8*time.Second)
		waiters := make([]testWaiter, 3)
		for i := range waiters { // at 0, 1 and 2 seconds
			w.Add(&waiters[i].place, &waiters[i])
			<-time.After(time.Second)
		}
		w.mu.Lock() // under which it is asked
		waiters[1].err = errors.New("reset")
		w.mu.Unlock()
		<-time.After(5*time.Second + time.Millisecond)
		synctest.Wait()
		if w.places.n != 1 || waiters[2].ended.Load() != 0 {
			t.Errorf("after 8 s %d places are taken; ended: %v", w.places.n, endings(waiters))
		}
		if w.timer == nil {
			t.Error("no timer runs for the one that waits")
		}
		w.Remove(&waiters[2].place)
		<-time.After(time.Minute)
		synctest.Wait()
		if w.timer != nil {
			t.Error("a timer runs for nobody")
		}
	})
}

// TestWaitingIsForThoseWhoAreThere: nobody has to make room for calls whose callers have gone.
func TestWaitingIsForThoseWhoAreThere(t *testing.T) {
	const most = 100
	w := NewWaiting(most, 0)
	honest := make([]testWaiter, most/2)
	for i := range honest {
		w.Add(&honest[i].place, &honest[i])
	}
	for range 20 * most {
		gone := &testWaiter{err: errors.New("reset")}
		w.Add(&gone.place, gone)
	}
	if n := w.places.n; n > most {
		t.Errorf("%d places are taken, of %d", n, most)
	}
	for i := range honest {
		if honest[i].ended.Load() > 0 {
			t.Fatal("an honest one was ended for those who had gone")
		}
	}
}

// TestPatience: each has the same time, whenever it came.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWaiting(10, 8*time.Second)
		waiters := make([]testWaiter, 5)
		for i := range waiters { // at 0, 3, 6, 9 and 12 seconds
			w.Add(&waiters[i].place, &waiters[i])
			if i == 1 {
				w.Remove(&waiters[1].place)
			}
			<-time.After(3 * time.Second)
		}
		for _, step := range []struct {
			after time.Duration // 15 s
			want  []int32
		}{
			{0, []int32{1, 0, 1, 0, 0}},
			{2*time.Second - 1, []int32{1, 0, 1, 0, 0}},
			{1, []int32{1, 0, 1, 1, 0}},
			{3 * time.Second, []int32{1, 0, 1, 1, 1}},
		} {
			<-time.After(step.after)
			synctest.Wait()
			if got := endings(waiters); !slices.Equal(got, step.want) {
				t.Errorf("%v later: ended %v, want %v", step.after, got, step.want)
			}
		}
		if w.timer != nil || w.places.n > 0 {
			t.Error("a timer runs for nobody")
		}
	})
}
