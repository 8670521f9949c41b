package tokencache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// groupMachine is a state machine over a group: callers arrive and leave, time passes, and calls
// end in any order.
type groupMachine struct {
	group   *group
	layer   *createLayer
	keys    byte
	clock   atomic.Int64 // of events
	callers []*arrived

	mu      sync.Mutex
	running map[key][]*called // guarded by mu; calls in flight
	most    map[int]bool      // guarded by mu; how many calls of a key have been in flight at a time
}

type called struct {
	began int64
	end   chan ended
}

// ended is how a call ends.
type ended struct {
	hit bool
	err error
}

type arrived struct {
	*waiter
	key  key
	at   int64
	left bool
}

var errCrash = errors.New("crash")

func (a *groupMachine) call(k key) func(context.Context, bool) (Result, error) {
	return func(ctx context.Context, _ bool) (Result, error) {
		c := &called{began: a.clock.Load(), end: make(chan ended)}
		a.begin(k, c)
		defer a.ended(k, c)
		select {
		case l := <-c.end:
			return Result{Token: atlas.Token(fmt.Sprintf("%x %d", k[0], c.began)), Status: Status{Hit: l.hit}}, l.err
		case <-ctx.Done():
			return Result{}, ctx.Err()
		}
	}
}

func (a *groupMachine) begin(k key, c *called) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running[k] = append(a.running[k], c)
	a.most[len(a.running[k])] = true
}

func (a *groupMachine) ended(k key, c *called) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running[k] = slices.DeleteFunc(a.running[k], func(other *called) bool { return other == c })
}

// up returns the calls of a key that are in flight.
func (a *groupMachine) up(k byte) []*called {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.running[key{k}])
}

func (a *groupMachine) arrive(t *rapid.T) {
	at := a.clock.Add(1)
	k := key{rapid.ByteRange(0, a.keys-1).Draw(t, "key")}
	for range rapid.IntRange(1, 4).Draw(t, "callers") {
		p := (&testGroup{group: a.group, layer: a.layer}).arrive(k[0], a.call(k))
		a.callers = append(a.callers, &arrived{waiter: p, key: k, at: at})
	}
}

// crowd adds callers until calls overlap.
func (a *groupMachine) crowd(t *rapid.T) {
	for range maxInFlight {
		a.arrive(t)
		a.clock.Add(1)
		after(machineLatency / 2)
		synctest.Wait()
	}
}

func (a *groupMachine) leave(t *rapid.T) {
	var waiting []*arrived
	for _, c := range a.callers {
		if !c.answered() {
			waiting = append(waiting, c)
		}
	}
	if len(waiting) == 0 {
		t.Skip("no caller waits")
	}
	c := rapid.SampledFrom(waiting).Draw(t, "caller")
	a.clock.Add(1)
	c.left = true
	c.leave()
	synctest.Wait()
}

func (a *groupMachine) end(t *rapid.T) {
	var up []*called
	for b := range a.keys {
		up = append(up, a.up(b)...)
	}
	if len(up) == 0 {
		t.Skip("nothing is in flight")
	}
	a.clock.Add(1)
	rapid.SampledFrom(up).Draw(t, "flight").end <- ended{
		hit: rapid.Bool().Draw(t, "hit"), err: rapid.SampledFrom([]error{nil, nil, errCrash}).Draw(t, "outcome"),
	}
	synctest.Wait()
}

func (a *groupMachine) pass(t *rapid.T) {
	a.clock.Add(1)
	after(time.Duration(rapid.IntRange(1, 64).Draw(t, "thirty-seconds of a call")) * machineLatency / 32)
	synctest.Wait()
}

// machineLatency is the latency of a call that is known at first, if any.
const machineLatency = 32 * ms

func (a *groupMachine) check(t *rapid.T) {
	waiting, waiters := map[key]bool{}, int64(0)
	for _, c := range a.callers {
		if !c.answered() {
			waiting[c.key] = true
			waiters++
			continue
		}
		c.check(t)
	}
	if n := a.group.waiting.Load(); n != waiters {
		t.Fatalf("%d callers wait, and %d are counted", waiters, n)
	}
	for b := range a.keys {
		n := len(a.up(b))
		if n > maxInFlight {
			t.Fatalf("key %d: %d calls are in flight", b, n)
		}
		if (n > 0) != waiting[key{b}] {
			t.Fatalf("key %d: %d calls are in flight; callers wait: %v", b, n, waiting[key{b}])
		}
		a.checkQueue(t, key{b}, n)
	}
	if len(a.group.queues) != len(waiting) {
		t.Fatalf("%d calls for %d keys", len(a.group.queues), len(waiting))
	}
}

// checkQueue checks the next call of a key that has n calls in flight: it has waiters, and it is
// sent as soon as pacing allows.
func (a *groupMachine) checkQueue(t *rapid.T, k key, n int) {
	a.group.mu.Lock()
	defer a.group.mu.Unlock()
	q := a.group.queues[k]
	if q == nil {
		return
	}
	if len(q.inFlight) != n {
		t.Fatalf("%d calls are in flight, and %d are counted", n, len(q.inFlight))
	}
	if q.next == nil {
		return
	}
	if q.next.waiters == 0 {
		t.Fatal("the next call has no waiters")
	}
	if a.keys > 1 {
		return // the latency is learnt from the calls of other keys as well
	}
	if _, ok := a.group.wait(q); ok && q.timer == nil {
		t.Fatal("the next call may be sent, and no timer is set")
	}
}

// check checks the answer that a caller got.
func (c *arrived) check(t *rapid.T) {
	if c.left {
		if !errors.Is(c.err, context.Canceled) {
			t.Fatalf("a caller who left was answered %q, %v", string(c.result.Token), c.err)
		}
		return
	}
	if c.err != nil && !errors.Is(c.err, errCrash) {
		t.Fatalf("a caller who stayed was answered %v", c.err)
	}
	var k byte
	var began int64
	if _, err := fmt.Sscanf(string(c.result.Token), "%x %d", &k, &began); err != nil {
		t.Fatalf("token %q: %v", string(c.result.Token), err)
	}
	if k != c.key[0] {
		t.Fatal("a caller got another key's answer")
	}
	if began < c.at {
		t.Fatalf("a caller that arrived at %d got the answer to a call that began at %d", c.at, began)
	}
}

// withoutDeadline is a test without its deadline, which must not be read in a bubble.
type withoutDeadline struct{ rapid.TB }

func TestGroupProperties(t *testing.T) {
	seen := map[int]bool{}
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(withoutDeadline{t}, func(t *rapid.T) {
			layer := newCreateLayer()
			a := &groupMachine{group: newGroup(layer, 1000*time.Hour), layer: layer, running: map[key][]*called{}, most: seen}
			a.keys = rapid.SampledFrom([]byte{1, 1, 3}).Draw(t, "keys")
			a.group.caches = rapid.Bool().Draw(t, "caches")
			a.group.latency = rapid.SampledFrom([]time.Duration{0, machineLatency, machineLatency, machineLatency}).Draw(t, "latency")
			defer a.group.close()
			t.Repeat(map[string]func(*rapid.T){"arrive": a.arrive, "leave": a.leave, "end": a.end, "pass": a.pass, "crowd": a.crowd, "": a.check})
		})
	})
	for n := range maxInFlight {
		if !seen[n+1] {
			t.Errorf("there were never %d calls in flight at a time: that proves little", n+1)
		}
	}
}
