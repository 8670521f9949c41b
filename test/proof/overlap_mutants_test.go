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

// overlapping shares calls, several of which may be in flight, and caches their results: the real
// design in small, with optional flaws. It shares by org, for more overlap.
type overlapping struct {
	history.Upstream

	flaw flaw

	mu   sync.Mutex
	orgs map[string]*overlap // guarded by mu
}

type flaw int

const (
	noFlaw       flaw = iota
	joinsLate         // callers join the last call if it was sent just now
	lastStays         // the last result is cached, even if a later call has returned another token
	fencesNewest      // a delete bars only the newest call in flight from the cache
)

// overlap is the state of an org. It is guarded by overlapping.mu.
type overlap struct {
	inFlight []*overlapCall
	next     *overlapCall
	noted    atlas.Token // Atlas's last response
	token    atlas.Token // cached
	until    time.Time
}

type overlapCall struct {
	cred   atlas.Credential
	sent   time.Time
	barred bool // its result must not be cached
	done   chan struct{}
	result tokencache.Result
	err    error
}

// apartBy is the least time between two calls.
const apartBy = time.Millisecond

func newOverlapping(f flaw) func(*testing.T) func(tokencache.Atlas) server.Tokens {
	return func(*testing.T) func(tokencache.Atlas) server.Tokens {
		return func(a tokencache.Atlas) server.Tokens {
			return &overlapping{Upstream: history.Upstream{Atlas: a}, flaw: f, orgs: map[string]*overlap{}}
		}
	}
}

// of returns the state of an org. The caller holds mu.
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
	if n := len(o.inFlight); m.flaw == joinsLate && n > 0 && time.Since(o.inFlight[n-1].sent) < apartBy {
		return o.inFlight[n-1]
	}
	if o.next == nil {
		o.next = &overlapCall{cred: cred, done: make(chan struct{})}
	}
	c := o.next
	m.consider(o)
	return c
}

// consider sends the next call if it may. The caller holds mu.
func (m *overlapping) consider(o *overlap) {
	n, c := len(o.inFlight), o.next
	if c == nil || n == 4 {
		return
	}
	if n > 0 {
		if wait := apartBy - time.Since(o.inFlight[n-1].sent); wait > 0 {
			time.AfterFunc(wait, func() {
				m.mu.Lock()
				defer m.mu.Unlock()
				m.consider(o)
			})
			return
		}
	}
	o.next, c.sent = nil, time.Now()
	o.inFlight = append(o.inFlight, c)
	go func() {
		c.result, c.err = m.Ask(context.Background(), c.cred)
		m.mu.Lock()
		defer m.mu.Unlock()
		m.finish(o, c)
	}()
}

func (m *overlapping) finish(o *overlap, c *overlapCall) {
	o.inFlight = slices.DeleteFunc(o.inFlight, func(other *overlapCall) bool { return other == c })
	if c.err == nil {
		if o.noted != "" && o.noted != c.result.Token && m.flaw != lastStays {
			c.barred = true
			o.forget(o.inFlight) // one of the two tokens is older
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
	{name: "a call joined after it was sent", replicas: 1, make: newOverlapping(joinsLate)},
	{name: "an older result replaces a newer one in the cache", replicas: 1, make: newOverlapping(lastStays)},
	{name: "a delete bars only the newest call in flight", replicas: 1, make: newOverlapping(fencesNewest)},
}

// TestProofAcceptsOverlap checks that the design without a flaw passes.
func TestProofAcceptsOverlap(t *testing.T) {
	testutil.ParallelWork(t)
	for range testutil.Some([]int{1, 2, 3}, 1) {
		w := newWorld(t, setup{replicas: 1, orgs: 4, tokens: newOverlapping(noFlaw)(t)})
		stopFaults := w.injectFaults(slowAnswers...)
		h := w.run(t, mutantTraffic)
		stopFaults()
		// It does not bypass the cache during a delete, so Dead does not apply.
		if rejected, undecided := h.Illegal(false, 20*time.Second); h.Violations() > 0 || len(rejected) > 0 || len(undecided) > 0 {
			t.Errorf("%d violations of acknowledged deletes, illegal in orgs %v, undecided in %v", h.Violations(), rejected, undecided)
		}
		if hits, _ := h.Hits(); hits == 0 {
			t.Error("there were no cache hits")
		}
	}
}
