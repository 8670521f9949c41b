package proof

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/history"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// overlapping shares calls of which several are in flight at a time, and remembers what they bring:
// the real design in small, with room for what is easily done wrong in it. Without a flaw it is
// correct. Callers come together by their org, to have more of them.
type overlapping struct {
	history.Upstream

	flaw flaw

	mu   sync.Mutex
	orgs map[string]*overlap // guarded by mu
}

type flaw int

const (
	noFlaw       flaw = iota
	joinsLate         // who comes shares the last call, if that left just now
	lastStays         // what lands last is remembered, though another call that left later has brought another token
	fencesNewest      // a delete keeps out of the memory what the newest call in flight brings, and not what the others do
)

// overlap is one org's. It is guarded by overlapping.mu.
type overlap struct {
	inFlight []*overlapCall
	next     *overlapCall
	noted    atlas.Token // what Atlas last answered with
	token    atlas.Token // what is remembered
	until    time.Time
}

type overlapCall struct {
	cred   atlas.Credential
	left   time.Time
	barred bool // what it brings may be older than what is known
	done   chan struct{}
	result tokencache.Result
	err    error
}

// apartBy is how long after another a call leaves.
const apartBy = time.Millisecond

func newOverlapping(f flaw) func(*testing.T) func(tokencache.Atlas) server.Tokens {
	return func(*testing.T) func(tokencache.Atlas) server.Tokens {
		return func(a tokencache.Atlas) server.Tokens {
			return &overlapping{Upstream: history.Upstream{Atlas: a}, flaw: f, orgs: map[string]*overlap{}}
		}
	}
}

// of returns an org's. The caller holds mu.
func (m *overlapping) of(cred atlas.Credential) *overlap {
	o := m.orgs[history.ByOrg(cred)]
	if o == nil {
		o = &overlap{}
		m.orgs[history.ByOrg(cred)] = o
	}
	return o
}

func (m *overlapping) Create(ctx context.Context, cred atlas.Credential, fresh bool) (tokencache.Result, error) {
	m.mu.Lock()
	o := m.of(cred)
	if !fresh && o.token != "" && time.Now().Before(o.until) {
		defer m.mu.Unlock()
		return tokencache.Result{Token: o.token, Status: tokencache.Status{Hit: true}}, nil
	}
	c := m.join(o, cred)
	m.mu.Unlock()
	select {
	case <-c.done:
		return c.result, c.err
	case <-ctx.Done():
		return tokencache.Result{}, ctx.Err()
	}
}

func (m *overlapping) join(o *overlap, cred atlas.Credential) *overlapCall {
	if n := len(o.inFlight); m.flaw == joinsLate && n > 0 && time.Since(o.inFlight[n-1].left) < apartBy {
		return o.inFlight[n-1]
	}
	if o.next == nil {
		o.next = &overlapCall{cred: cred, done: make(chan struct{})}
	}
	c := o.next
	m.consider(o)
	return c
}

// consider lets the next call leave if it may. The caller holds mu.
func (m *overlapping) consider(o *overlap) {
	n, c := len(o.inFlight), o.next
	if c == nil || n == 4 {
		return
	}
	if n > 0 {
		if wait := apartBy - time.Since(o.inFlight[n-1].left); wait > 0 {
			time.AfterFunc(wait, func() {
				m.mu.Lock()
				defer m.mu.Unlock()
				m.consider(o)
			})
			return
		}
	}
	o.next, c.left = nil, time.Now()
	o.inFlight = append(o.inFlight, c)
	go func() {
		c.result, c.err = m.Ask(context.Background(), c.cred)
		m.mu.Lock()
		defer m.mu.Unlock()
		m.land(o, c)
	}()
}

func (m *overlapping) land(o *overlap, c *overlapCall) {
	o.inFlight = slices.DeleteFunc(o.inFlight, func(other *overlapCall) bool { return other == c })
	if c.err == nil {
		if o.noted != "" && o.noted != c.result.Token && m.flaw != lastStays {
			c.barred = true
			o.forget(o.inFlight) // one of the two is older
		}
		if o.noted = c.result.Token; !c.barred {
			o.token, o.until = o.noted, time.Now().Add(proofTTL)
		}
	}
	close(c.done)
	m.consider(o)
}

func (o *overlap) forget(barred []*overlapCall) {
	o.token = ""
	for _, c := range barred {
		c.barred = true
	}
}

func (m *overlapping) Delete(ctx context.Context, cred atlas.Credential) (string, error) {
	org, err := m.Send(ctx, cred)
	m.mu.Lock()
	defer m.mu.Unlock()
	o := m.of(cred)
	o.noted = ""
	if n := len(o.inFlight); m.flaw == fencesNewest && n > 0 {
		o.forget(o.inFlight[n-1:])
	} else {
		o.forget(o.inFlight)
	}
	return org, err
}

var overlapMutants = []mutant{
	{name: "a call that takes who comes after it has left", replicas: 1, make: newOverlapping(joinsLate)},
	{name: "an older answer that replaces a younger in memory", replicas: 1, make: newOverlapping(lastStays)},
	{name: "a delete that fences only the newest call in flight", replicas: 1, make: newOverlapping(fencesNewest)},
}

// TestProofAcceptsOverlap: without a flaw the design passes. So what the proof finds out of the
// others is their flaw.
func TestProofAcceptsOverlap(t *testing.T) {
	testutil.ParallelWork(t)
	for range testutil.Some([]int{1, 2, 3}, 1) {
		w := newWorld(t, setup{replicas: 1, orgs: 4, tokens: newOverlapping(noFlaw)(t)})
		stopFaults := w.injectFaults(slowAnswers...)
		h := w.run(t, mutantTraffic)
		stopFaults()
		// It does not hold anybody off while a delete is in progress, so it is judged as those that
		// are rejected, without dead.
		if rejected, undecided := h.Illegal(false, 20*time.Second); h.Violations() > 0 || len(rejected) > 0 || len(undecided) > 0 {
			t.Errorf("%d violations of acknowledged deletes, illegal in orgs %v, undecided in %v", h.Violations(), rejected, undecided)
		}
		if hits, _ := h.Hits(); hits == 0 {
			t.Error("nothing was answered from memory: that proves little")
		}
	}
}
