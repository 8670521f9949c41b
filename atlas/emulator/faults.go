package emulator

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Fault is one way of misbehaving. The zero value matches every request and changes nothing.
//
// Several faults can be in force. A request meets the first that matches it, in the order of
// injection, so two faults with Times 1 happen one after the other.
//
// A fault that replaces the answer (Status 300 or above, Body or Drop) keeps the operation from
// taking effect, unless AfterEffect is set. Every other fault changes the genuine answer of an
// operation that did take effect.
type Fault struct {
	On    Operation `json:"operation,omitempty"` // which requests; Any by default
	Org   string    `json:"org,omitempty"`       // only requests with a JWT of the org of this id
	Times int       `json:"times,omitempty"`     // how many requests; 0: until removed
	// For is how long the fault stays; 0: until removed.
	For time.Duration `json:"-"`

	// Delay is the time to wait before the first byte of the answer. It ends early when the client
	// leaves.
	Delay time.Duration `json:"-"`
	// EvenIfGone carries the operation out after Delay although its client has left meanwhile, as a
	// server does that has read the request.
	EvenIfGone bool `json:"even_if_gone,omitempty"`
	// AfterEffect does the operation first. Delay and the rest come after it.
	AfterEffect bool `json:"after_effect,omitempty"`

	Status int `json:"status,omitempty"` // 200 to 599; 0: the genuine one, or the operation's success
	// Header is added to the answer, such as Retry-After or Content-Type. On HTTP/2, "Connection:
	// close" makes the server send GOAWAY.
	Header http.Header `json:"header,omitempty"`
	// Body replaces the body. Without it, a Status of 400 or above comes with a JSON body that
	// names the status.
	Body string `json:"body,omitempty"`
	// Shape is what happens to the body on the way. It does nothing to a 204, which has none.
	Shape Shape `json:"shape,omitempty"`

	Drop Drop `json:"drop,omitempty"` // drops the request without an answer
}

// Shape is what happens to an answer's body on its way to the client.
type Shape string

// The shapes.
const (
	Whole     Shape = ""          // it arrives
	Empty     Shape = "empty"     // there is none
	Truncated Shape = "truncated" // the first half, then an orderly end short of Content-Length
	Reset     Shape = "reset"     // the first half, then a TCP reset
	Drip      Shape = "drip"      // byte by byte, one every 10 ms
	Stall     Shape = "stall"     // nothing after the header, until the client leaves
	Endless   Shape = "endless"   // all of it, then spaces until the client leaves
	GzipBomb  Shape = "gzip-bomb" // all of it and 8 MiB of spaces, with Content-Encoding: gzip
)

// Drop is a way to end a request before its answer begins.
type Drop string

// The drops.
const (
	NoDrop          Drop = ""
	ResetConnection Drop = "reset"  // TCP reset
	CloseConnection Drop = "close"  // TCP end, without an answer
	AbortStream     Drop = "stream" // HTTP/2: RST_STREAM, and the connection lives; HTTP/1.1: as CloseConnection
	Flood1xx        Drop = "1xx"    // 103 answers until the client leaves
)

var (
	shapes = []Shape{Whole, Empty, Truncated, Reset, Drip, Stall, Endless, GzipBomb}
	drops  = []Drop{NoDrop, ResetConnection, CloseConnection, AbortStream, Flood1xx}
)

func (f Fault) validate() error {
	switch {
	case !slices.Contains(operations, f.On):
		return fmt.Errorf("unknown operation %q", f.On)
	case f.Status != 0 && (f.Status < 200 || f.Status > 599):
		return fmt.Errorf("status is %d: want 200 to 599", f.Status)
	case !slices.Contains(shapes, f.Shape):
		return fmt.Errorf("unknown shape %q", f.Shape)
	case !slices.Contains(drops, f.Drop):
		return fmt.Errorf("unknown drop %q", f.Drop)
	}
	return nil
}

// replaces reports whether the genuine answer has no part in f's.
func (f Fault) replaces() bool { return f.Status >= 300 || f.Body != "" || f.Drop != NoDrop }

// Inject puts f in force and returns what removes it again, which may be called more than once. It
// panics if f is not a possible fault.
func (em *Emulator) Inject(f Fault) (remove func()) {
	if err := f.validate(); err != nil {
		panic("emulator: fault: " + err.Error())
	}
	id := em.faults.add(f)
	return func() { em.faults.remove(id) }
}

// faults are the faults in force.
type faults struct {
	mu     sync.Mutex
	lastID int         // guarded by mu
	active []liveFault // guarded by mu; in the order of injection
}

// liveFault is a fault whose Times are those that are left.
type liveFault struct {
	id int
	Fault
}

func (fs *faults) add(f Fault) (id int) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.lastID++
	id = fs.lastID
	fs.active = append(fs.active, liveFault{id, f})
	if f.For > 0 {
		time.AfterFunc(f.For, func() { fs.remove(id) })
	}
	return id
}

func (fs *faults) remove(id int) (found bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	before := len(fs.active)
	fs.active = slices.DeleteFunc(fs.active, func(f liveFault) bool { return f.id == id })
	return len(fs.active) < before
}

func (fs *faults) clear() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.active = nil
}

// take returns the fault that a request of an org for op meets, the zero Fault if there is none. It
// counts as met.
func (fs *faults) take(op Operation, org string) Fault {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	i := slices.IndexFunc(fs.active, func(f liveFault) bool { return f.On.matches(op) && (f.Org == "" || f.Org == org) })
	if i < 0 {
		return Fault{}
	}
	f := fs.active[i].Fault
	switch f.Times {
	case 0: // until it is removed
	case 1:
		fs.active = slices.Delete(fs.active, i, i+1)
	default:
		fs.active[i].Times--
	}
	return f
}

// Gate holds requests until they are passed or it is released. A held request ends when its client
// leaves or the emulator closes.
type Gate struct {
	all      *gates
	on       Operation
	after    bool          // holds answers
	next     chan struct{} // lets one request go
	released chan struct{} // closed by Release
	held     int           // guarded by all.mu
	changed  chan struct{} // guarded by all.mu; closed and replaced when held changes
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
	g := &Gate{all: gs, on: op, after: after, next: make(chan struct{}), released: make(chan struct{}), changed: make(chan struct{})}
	gs.list = append(gs.list, g)
	return g
}

// Held returns the number of requests at the gate.
func (g *Gate) Held() int {
	g.all.mu.Lock()
	defer g.all.mu.Unlock()
	return g.held
}

// add changes the number of requests at the gate.
func (g *Gate) add(n int) {
	g.all.mu.Lock()
	defer g.all.mu.Unlock()
	g.held += n
	close(g.changed)
	g.changed = make(chan struct{})
}

// Wait returns nil as soon as at least n requests are held, or ctx's error.
func (g *Gate) Wait(ctx context.Context, n int) error {
	for {
		g.all.mu.Lock()
		held, changed := g.held, g.changed
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

// Pass lets n requests go. It waits for them if fewer are held.
func (g *Gate) Pass(n int) {
	for range n {
		g.next <- struct{}{}
	}
}

// Release lets every held request go and removes the gate.
func (g *Gate) Release() {
	g.all.mu.Lock()
	defer g.all.mu.Unlock()
	if i := slices.Index(g.all.list, g); i >= 0 {
		g.all.list = slices.Delete(g.all.list, i, i+1)
		close(g.released)
	}
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
	g := gs.list[i]
	gs.mu.Unlock()
	g.add(1)
	defer g.add(-1)
	select {
	case <-g.next:
	case <-g.released:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}
