package tokencache

import (
	"container/list"
	"context"
	"sync"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// memoryStore is the cache in this process.
type memoryStore struct {
	ttl, stale, settle time.Duration
	idle               time.Duration // how long the fence of an org without tokens is kept: longer than any call, so that no view outlives it
	maxTokens          int

	mu      sync.Mutex
	closed  bool              // guarded by mu
	cleared uint64            // guarded by mu; how many deletes were for every org
	orgs    map[string]*fence // guarded by mu; only orgs of which Atlas has accepted a credential
	tokens  map[key]*entry    // guarded by mu
	oldest  list.List         // guarded by mu; *entry, the oldest first
	sweeper *time.Timer       // guarded by mu; nil while there is nothing
}

// generation counts the deletes for every org, and the moves of the org's fence. It is zero for an org without a fence.
type generation struct{ cleared, moved uint64 }

// fence is the fence of one org.
type fence struct {
	moved  uint64      // how often it has moved
	holds  int         // deletes in progress, or not settled
	token  atlas.Token // the last one that Atlas answered with
	tokens int         // how many are cached
	used   time.Time   // when it was last used
}

// entry is one token that is cached for one credential.
type entry struct {
	key   key
	org   string
	fence *fence
	view  generation
	token atlas.Token
	since time.Time // when Atlas was asked
	fresh time.Time // until when it is fresh
	until time.Time // until when it is kept
	order *list.Element
}

func newMemoryStore(cfg Config) *memoryStore {
	return &memoryStore{
		ttl: cfg.TTL, stale: cfg.StaleIfError, settle: cfg.SettleTime, idle: cfg.CallTimeout + cfg.SettleTime, maxTokens: cfg.MaxTokens,
		orgs: map[string]*fence{}, tokens: map[key]*entry{},
	}
}

// peek is get without a view.
func (m *memoryStore) peek(k key) found {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.find(k, now)
}

// find returns the token that may be read, if any. The caller holds mu.
func (m *memoryStore) find(k key, now time.Time) found {
	r := m.tokens[k]
	if r == nil || !now.Before(r.until) || r.fence.holds > 0 || r.view != (generation{m.cleared, r.fence.moved}) {
		return found{}
	}
	return found{r.token, r.org, now.Sub(r.since), r.fresh.Sub(now)}
}

func (m *memoryStore) get(_ context.Context, r request) (found, view) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	v := view{at: now, memory: generation{cleared: m.cleared}}
	if f := m.orgs[r.org()]; f != nil {
		v.memory.moved = f.moved
	}
	return m.find(r.key, now), v
}

func (m *memoryStore) put(_ context.Context, v view, r request, token atlas.Token, life time.Duration) {
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
	if other := m.tokens[r.key]; other != nil && other.view == v.memory && other.since.After(v.at) {
		return
	}
	m.remove(m.tokens[r.key])
	kept := &entry{key: r.key, org: r.org(), fence: f, view: v.memory, token: token, since: v.at, fresh: fresh, until: until}
	kept.order = m.oldest.PushBack(kept)
	m.tokens[r.key] = kept
	f.tokens++
	for len(m.tokens) > m.maxTokens {
		m.remove(m.oldest.Front().Value.(*entry))
	}
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// fence returns the fence of an org, made if there is none. Atlas has accepted a credential of the org. The caller holds mu.
func (m *memoryStore) fence(org string, now time.Time) *fence {
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
func (m *memoryStore) remove(r *entry) {
	if r == nil {
		return
	}
	m.oldest.Remove(r.order)
	delete(m.tokens, r.key)
	r.fence.tokens--
}

func (m *memoryStore) invalidate(_ context.Context, r request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remove(m.tokens[r.key])
}

// sweepInterval is the time between sweeps: at most half of a token's life.
func (m *memoryStore) sweepInterval() time.Duration { return max((m.ttl+m.stale)/2, time.Millisecond) }

// sweepSteps bounds one sweep, because it holds mu.
const sweepSteps = 4096

// sweep removes tokens that have expired, and the fences of orgs without tokens.
func (m *memoryStore) sweep() {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	next := m.oldest.Front()
	for range sweepSteps {
		if next == nil {
			break
		}
		r := next.Value.(*entry)
		next = next.Next()
		if !now.Before(r.until) || r.view != (generation{m.cleared, r.fence.moved}) {
			m.remove(r)
		}
	}
	steps := 0
	for org, f := range m.orgs { // in random order, so that sweeps reach all of them
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

func (m *memoryStore) deletion(org string) deletion { return &memoryDeletion{memory: m, org: org} }

type memoryDeletion struct {
	memory *memoryStore
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

// move starts a new generation.
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
	f.token = "" // the next answer may well be another token
}

func (m *memoryStore) check() error { return nil }

func (m *memoryStore) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	clear(m.tokens)
	m.oldest.Init()
	if m.sweeper != nil {
		m.sweeper.Stop()
	}
}
