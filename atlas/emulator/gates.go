package emulator

import (
	"context"
	"slices"
	"sync"
)

// Gate holds requests until the test lets them go. A held request ends when
// its client leaves or the emulator closes.
type Gate struct {
	on      Operation
	remove  func()
	mu      sync.Mutex
	waiting []chan struct{} // guarded by mu; closed to let one go, oldest first
	passes  int             // guarded by mu; how many may pass without waiting
	open    bool            // guarded by mu
	changed chan struct{}   // guarded by mu; closed and replaced when waiting grows
}

// Hold stops requests for op before they take effect. A request whose client
// leaves while it is held has no effect.
func (em *Emulator) Hold(op Operation) *Gate { return em.gates.add(op, &em.gates.before) }

// HoldAnswer stops requests for op after they took effect and before the first
// byte of their answer.
func (em *Emulator) HoldAnswer(op Operation) *Gate { return em.gates.add(op, &em.gates.after) }

// Held is the number of requests at the gate.
func (g *Gate) Held() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.waiting)
}

// Wait returns nil as soon as at least n requests are held, or ctx's error.
func (g *Gate) Wait(ctx context.Context, n int) error {
	for {
		g.mu.Lock()
		held, changed := len(g.waiting), g.changed
		g.mu.Unlock()
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

// Pass lets n requests go, those that have waited longest first. If fewer are
// held, the next ones to come pass at once.
func (g *Gate) Pass(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := min(n, len(g.waiting))
	for _, w := range g.waiting[:now] {
		close(w)
	}
	g.waiting = g.waiting[now:]
	g.passes += n - now
}

// Release lets every held request go and removes the gate.
func (g *Gate) Release() {
	g.remove()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = true
	for _, w := range g.waiting {
		close(w)
	}
	g.waiting = nil
}

// pass returns when the request may go on, or with ctx's error.
func (g *Gate) pass(ctx context.Context) error {
	w := g.join()
	if w == nil {
		return nil
	}
	select {
	case <-w:
		return nil
	case <-ctx.Done():
		g.mu.Lock()
		defer g.mu.Unlock()
		g.waiting = slices.DeleteFunc(g.waiting, func(other chan struct{}) bool { return other == w })
		return ctx.Err()
	}
}

// join queues the caller; nil means that it need not wait.
func (g *Gate) join() chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open {
		return nil
	}
	if g.passes > 0 {
		g.passes--
		return nil
	}
	w := make(chan struct{})
	g.waiting = append(g.waiting, w)
	close(g.changed)
	g.changed = make(chan struct{})
	return w
}

// gates are the gates in place, before and after the effect.
type gates struct {
	mu            sync.Mutex
	before, after []*Gate // guarded by mu; replaced, never changed
}

func (gs *gates) add(op Operation, where *[]*Gate) *Gate {
	g := &Gate{on: op, changed: make(chan struct{})}
	g.remove = func() {
		gs.mu.Lock()
		defer gs.mu.Unlock()
		*where = slices.DeleteFunc(slices.Clone(*where), func(other *Gate) bool { return other == g })
	}
	gs.mu.Lock()
	defer gs.mu.Unlock()
	*where = append(slices.Clone(*where), g)
	return g
}

// pass takes a request for op through the gates at one of the two places.
func (gs *gates) pass(ctx context.Context, op Operation, where *[]*Gate) error {
	gs.mu.Lock()
	list := *where
	gs.mu.Unlock()
	for _, g := range list {
		if !g.on.matches(op) {
			continue
		}
		if err := g.pass(ctx); err != nil {
			return err
		}
	}
	return nil
}
