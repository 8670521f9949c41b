package emulator

import (
	"context"
	"slices"
	"sync"
)

// Gate holds requests until they are passed or it is released. A held request ends when its client
// leaves or the emulator closes.
type Gate struct {
	all     *gates
	on      Operation
	after   bool            // holds answers
	waiting []chan struct{} // guarded by all.mu; closed to let one go, oldest first
	changed chan struct{}   // guarded by all.mu; closed and replaced when waiting grows
}

// gates are the gates in place.
type gates struct {
	mu   sync.Mutex
	list []*Gate // guarded by mu
}

// Hold stops requests for op before they take effect. A request whose client leaves while it is
// held has no effect.
func (em *Emulator) Hold(op Operation) *Gate { return em.gates.add(op, false) }

// HoldAnswer stops requests for op after they took effect and before the first byte of their
// answer.
func (em *Emulator) HoldAnswer(op Operation) *Gate { return em.gates.add(op, true) }

func (gs *gates) add(op Operation, after bool) *Gate {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g := &Gate{all: gs, on: op, after: after, changed: make(chan struct{})}
	gs.list = append(gs.list, g)
	return g
}

// Held is the number of requests at the gate.
func (g *Gate) Held() int {
	g.all.mu.Lock()
	defer g.all.mu.Unlock()
	return len(g.waiting)
}

// Wait returns nil as soon as at least n requests are held, or ctx's error.
func (g *Gate) Wait(ctx context.Context, n int) error {
	for {
		g.all.mu.Lock()
		held, changed := len(g.waiting), g.changed
		g.all.mu.Unlock()
		if held >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Pass lets n of the held requests go, those that have waited longest first.
func (g *Gate) Pass(n int) {
	g.all.mu.Lock()
	defer g.all.mu.Unlock()
	n = min(n, len(g.waiting))
	for _, w := range g.waiting[:n] {
		close(w)
	}
	g.waiting = g.waiting[n:]
}

// Release lets every held request go and removes the gate.
func (g *Gate) Release() {
	g.all.mu.Lock()
	defer g.all.mu.Unlock()
	g.all.list = slices.DeleteFunc(g.all.list, func(other *Gate) bool { return other == g })
	for _, w := range g.waiting {
		close(w)
	}
	g.waiting = nil
}

// pass returns when a request for op may go on, or with ctx's error. It waits at the first gate
// that holds it.
func (gs *gates) pass(ctx context.Context, op Operation, after bool) error {
	gs.mu.Lock()
	i := slices.IndexFunc(gs.list, func(g *Gate) bool { return g.after == after && g.on.matches(op) })
	if i < 0 {
		gs.mu.Unlock()
		return nil
	}
	g, w := gs.list[i], make(chan struct{})
	g.waiting = append(g.waiting, w)
	close(g.changed)
	g.changed = make(chan struct{})
	gs.mu.Unlock()
	select {
	case <-w:
		return nil
	case <-ctx.Done():
		gs.mu.Lock()
		defer gs.mu.Unlock()
		g.waiting = slices.DeleteFunc(g.waiting, func(other chan struct{}) bool { return other == w })
		return ctx.Err()
	}
}
