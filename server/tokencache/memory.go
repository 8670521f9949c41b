package tokencache

import (
	"container/list"
	"context"
	"sync"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// memory remembers in this process.
type memory struct {
	ttl, stale, settle time.Duration
	idle               time.Duration // how long an org that has nothing is kept: longer than any call, so that no view is older
	maxTokens          int

	mu      sync.Mutex
	closed  bool                // guarded by mu
	cleared uint64              // guarded by mu; how often a delete was of every org
	orgs    map[string]*fence   // guarded by mu; those that Atlas has accepted a credential of
	tokens  map[key]*remembered // guarded by mu
	oldest  list.List           // guarded by mu; *remembered, the oldest first
	sweeper *time.Timer         // guarded by mu; nil while there is nothing
}

// generation is where an org stands. An org that is not known yet stands at the beginning.
type generation struct{ cleared, moved uint64 }

// fence is that of one org.
type fence struct {
	moved  uint64      // how often it has moved
	holds  int         // deletes in progress, or not settled
	token  atlas.Token // the last one that Atlas answered with
	tokens int         // how many are remembered
	used   time.Time   // last
}

// remembered is one token, under one credential.
type remembered struct {
	key   key
	org   string
	fence *fence
	view  generation
	token atlas.Token
	since time.Time // Atlas was asked
	fresh time.Time // a hit until then
	until time.Time // kept until then
	order *list.Element
}

func newMemory(cfg Config) *memory {
	return &memory{
		ttl: cfg.TTL, stale: cfg.StaleIfError, settle: cfg.SettleTime, idle: cfg.CallTimeout + cfg.SettleTime, maxTokens: cfg.MaxTokens,
		orgs: map[string]*fence{}, tokens: map[key]*remembered{},
	}
}

// peek returns what is remembered and nothing else.
func (m *memory) peek(k key) found {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.find(k, now)
}

// find returns what may be read. The caller holds mu.
func (m *memory) find(k key, now time.Time) found {
	r := m.tokens[k]
	if r == nil || !now.Before(r.until) || r.fence.holds > 0 || r.view != (generation{m.cleared, r.fence.moved}) {
		return found{}
	}
	return found{r.token, r.org, now.Sub(r.since), r.fresh.Sub(now)}
}

func (m *memory) get(_ context.Context, r request) (found, view) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	v := view{at: now, memory: generation{cleared: m.cleared}}
	if f := m.orgs[r.org()]; f != nil {
		v.memory.moved = f.moved
	}
	return m.find(r.key, now), v
}

func (m *memory) put(_ context.Context, v view, r request, token atlas.Token, life time.Duration) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	f := m.fence(r.org(), now)
	if f.token != token && f.token != "" {
		f.moved++
	}
	f.token = token
	fresh, until := earliest(v.at.Add(m.ttl), now.Add(life)), earliest(v.at.Add(m.ttl+m.stale), now.Add(life))
	if !now.Before(until) || v.memory != (generation{m.cleared, f.moved}) {
		return
	}
	m.remove(m.tokens[r.key])
	kept := &remembered{key: r.key, org: r.org(), fence: f, view: v.memory, token: token, since: v.at, fresh: fresh, until: until}
	kept.order = m.oldest.PushBack(kept)
	m.tokens[r.key] = kept
	f.tokens++
	for len(m.tokens) > m.maxTokens {
		m.remove(m.oldest.Front().Value.(*remembered))
	}
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// fence returns the fence of an org that Atlas has accepted a credential of. The caller holds mu.
func (m *memory) fence(org string, now time.Time) *fence {
	f := m.orgs[org]
	if f == nil {
		f = &fence{}
		m.orgs[org] = f
	}
	f.used = now
	if m.sweeper == nil && !m.closed {
		m.sweeper = time.AfterFunc(m.sweepInterval(), m.sweep)
	}
	return f
}

// remove removes one token, which may be nil. The caller holds mu.
func (m *memory) remove(r *remembered) {
	if r == nil {
		return
	}
	m.oldest.Remove(r.order)
	delete(m.tokens, r.key)
	r.fence.tokens--
}

func (m *memory) forget(_ context.Context, r request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remove(m.tokens[r.key])
}

// sweepInterval is how often is looked for what can go: at least twice in the life of a token.
func (m *memory) sweepInterval() time.Duration { return max((m.ttl+m.stale)/2, time.Millisecond) }

// sweepSteps bounds how much one sweep looks at, because everybody waits for it.
const sweepSteps = 4096

// sweep forgets tokens that have expired, though nobody asks for them any more, and the fences of orgs that have none.
func (m *memory) sweep() {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	next := m.oldest.Front()
	for range sweepSteps {
		if next == nil {
			break
		}
		r := next.Value.(*remembered)
		next = next.Next()
		if !now.Before(r.until) || r.view != (generation{m.cleared, r.fence.moved}) {
			m.remove(r)
		}
	}
	steps := 0
	for org, f := range m.orgs { // in no order, so that each has its turn
		if f.tokens == 0 && f.holds == 0 && now.Sub(f.used) > m.idle {
			delete(m.orgs, org)
		}
		if steps++; steps == sweepSteps {
			break
		}
	}
	m.sweeper = nil
	if !m.closed && len(m.orgs) > 0 {
		m.sweeper = time.AfterFunc(m.sweepInterval(), m.sweep)
	}
}

func (m *memory) deletion(org string) deletion { return &memoryDeletion{memory: m, org: org} }

type memoryDeletion struct {
	memory *memory
	org    string // "": every org, which cannot be held
	held   bool
}

func (d *memoryDeletion) begin(context.Context) {
	d.held = true
	d.move(+1)
}

func (d *memoryDeletion) end(_ context.Context, how outcome) error {
	switch {
	case !d.held:
		d.move(0)
	case how == outcomeUnknown:
		d.move(0)
		time.AfterFunc(d.memory.settle, func() { d.move(-1) })
	default:
		d.move(-1)
	}
	return nil
}

// move makes a new generation.
func (d *memoryDeletion) move(holds int) {
	m := d.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if d.org == "" {
		m.cleared++
		return
	}
	f := m.fence(d.org, time.Now())
	f.moved++
	f.holds += holds
	f.token = "" // whatever Atlas answers who is asked from now on contradicts nobody
}

func (m *memory) check() error { return nil }

func (m *memory) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	clear(m.tokens)
	m.oldest.Init()
	if m.sweeper != nil {
		m.sweeper.Stop()
	}
}
