package tokencache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// groupMachine is a state machine over a group: callers arrive and leave and calls land in any order.
type groupMachine struct {
	group   *group
	layer   *createLayer
	clock   int // of events
	callers []*arrived

	mu      sync.Mutex
	running map[key]*called // guarded by mu; calls in flight
	broken  error           // guarded by mu; what went wrong inside a call
}

type called struct {
	began int
	land  chan error
}

type arrived struct {
	*waiter
	key  key
	at   int
	left bool
}

var errCrash = errors.New("crash")

func (a *groupMachine) call(k key) func(context.Context, bool) (Result, error) {
	return func(ctx context.Context, _ bool) (Result, error) {
		c := &called{began: a.clock, land: make(chan error)}
		a.swap(k, c)
		defer a.swap(k, nil)
		select {
		case err := <-c.land:
			return Result{Token: atlas.Token(fmt.Sprintf("%x %d", k[0], c.began))}, err
		case <-ctx.Done():
			return Result{}, ctx.Err()
		}
	}
}

// swap notes that a call of k has begun, or ended if c is nil.
func (a *groupMachine) swap(k key, c *called) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c != nil && a.running[k] != nil {
		a.broken = errors.New("two calls of one key in flight")
	}
	a.running[k] = c
}

func (a *groupMachine) up(k byte) *called {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.running[key{k}]
}

func (a *groupMachine) arrive(t *rapid.T) {
	a.clock++
	k := key{rapid.Byte().Filter(func(b byte) bool { return b < 3 }).Draw(t, "key")}
	p := (&testGroup{group: a.group, layer: a.layer}).arrive(k[0], a.call(k))
	a.callers = append(a.callers, &arrived{waiter: p, key: k, at: a.clock})
}

func (a *groupMachine) leave(t *rapid.T) {
	var waiting []*arrived
	for _, c := range a.callers {
		if !c.answered() {
			waiting = append(waiting, c)
		}
	}
	if len(waiting) == 0 {
		t.Skip("nobody is waiting")
	}
	c := rapid.SampledFrom(waiting).Draw(t, "caller")
	a.clock++
	c.left = true
	c.leave()
	synctest.Wait()
}

func (a *groupMachine) land(t *rapid.T) {
	var up []*called
	for b := range byte(3) {
		if c := a.up(b); c != nil {
			up = append(up, c)
		}
	}
	if len(up) == 0 {
		t.Skip("nothing is in flight")
	}
	a.clock++
	rapid.SampledFrom(up).Draw(t, "flight").land <- rapid.SampledFrom([]error{nil, errCrash}).Draw(t, "outcome")
	synctest.Wait()
}

func (a *groupMachine) check(t *rapid.T) {
	a.mu.Lock()
	broken := a.broken
	a.mu.Unlock()
	if broken != nil {
		t.Fatal(broken)
	}
	waiting := map[key]bool{}
	for _, c := range a.callers {
		if !c.answered() {
			waiting[c.key] = true
			continue
		}
		c.check(t)
	}
	for b := range byte(3) {
		if (a.up(b) != nil) != waiting[key{b}] {
			t.Fatalf("key %d: a call is in flight: %v; somebody waits: %v", b, a.up(b) != nil, waiting[key{b}])
		}
	}
	if len(a.group.calls) != len(waiting) {
		t.Fatalf("%d calls for %d keys", len(a.group.calls), len(waiting))
	}
}

// check looks at what a caller was answered.
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
	var began int
	if _, err := fmt.Sscanf(string(c.result.Token), "%x %d", &k, &began); err != nil {
		t.Fatalf("token %q: %v", string(c.result.Token), err)
	}
	if k != c.key[0] {
		t.Fatal("a caller was given another key's answer")
	}
	if began < c.at {
		t.Fatalf("a caller who came at %d was given the answer to a call that began at %d", c.at, began)
	}
}

// bubbled is a test without its deadline, which nobody may ask for in a bubble.
type bubbled struct{ rapid.TB }

func TestGroupProperties(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(bubbled{t}, func(t *rapid.T) {
			layer := newCreateLayer()
			a := &groupMachine{group: newGroup(layer, time.Hour, false), layer: layer, running: map[key]*called{}}
			defer a.group.close()
			t.Repeat(map[string]func(*rapid.T){"arrive": a.arrive, "leave": a.leave, "land": a.land, "": a.check})
		})
	})
}
