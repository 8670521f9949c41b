package resilient

import (
	"testing"
	"testing/synctest"
	"time"
)

// granted reports whether a waiter has a slot, and refused whether it was told that it gets none.
func granted(w *waiter) (granted, refused bool) {
	select {
	case <-w.done:
		return w.slot != nil, w.slot == nil
	default:
		return false, false
	}
}

// The first to come is served first, unless there are too many calls and it has waited for too long.
func TestOrderOfWaiters(t *testing.T) {
	for name, overloaded := range map[string]bool{"burst": false, "too many": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLimiter(1)
				slot, _, _ := l.enter(time.Now())
				var waiters [4]*waiter
				for i := range waiters {
					<-time.After(minPatience / 4)
					_, _, waiters[i] = l.enter(time.Now())
				}
				if overloaded {
					l.refuse(time.Now())
				}
				<-time.After(minPatience/4 + time.Millisecond) // the first has waited for longer than that
				before := time.Now()
				slot.release(false)
				got := ""
				for _, w := range waiters {
					switch granted, refused := granted(w); {
					case granted:
						got += "granted "
					case refused:
						got += "refused "
					default:
						got += "waits "
					}
				}
				want, refused := "granted waits waits waits ", uint64(0)
				if overloaded {
					want, refused = "refused granted waits waits ", 2
				}
				if got != want || l.refused != refused {
					t.Errorf("the waiters: %s, want %s; %d count as refused", got, want, l.refused)
				}
				if overloaded && !l.overloaded.Equal(before.Add(overloadTime)) {
					t.Errorf("after a refusal the queue is kept short for %v", l.overloaded.Sub(before))
				}
			})
		})
	}
}
