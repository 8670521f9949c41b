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
	ttl, stale, settleTime time.Duration
	maxTokens              int

	mu      sync.Mutex
	cleared uint64            // guarded by mu; the number of deletes for every org
	fences  map[string]*fence // guarded by mu; by org, those in use
	tokens  map[key]*entry    // guarded by mu
	oldest  list.List         // guarded by mu; *entry, the oldest first
	sweeper *time.Timer       // guarded by mu; nil while there are no tokens
}

// generation counts the deletes for every org, and the moves of the org's fence.
type generation struct{ cleared, moved uint64 }

// fence is the fence of one org. It is kept while a call for the org is in flight, a delete holds
// it, or a token is cached behind it: without any of these, no snapshot can be compared with it.
type fence struct {
	org   string
	uses  int         // calls, holds and tokens
	moved uint64      // how often it has moved
	holds int         // deletes in progress or not settled
	token atlas.Token // the last one that Atlas answered with
}

// entry is one token that is cached for one credential.
type entry struct {
	key        key
	fence      *fence
	generation generation
	token      atlas.Token
	since      time.Time     // when Atlas was asked
	life       time.Duration // after since, it is kept
	order      *list.Element
}

func newMemoryStore(cfg Config) *memoryStore {
	return &memoryStore{
		ttl: cfg.TTL, stale: cfg.StaleIfError, settleTime: cfg.SettleTime, maxTokens: maxTokens,
		fences: map[string]*fence{}, tokens: map[key]*entry{},
	}
}

// peek is Get without a snapshot.
func (m *memoryStore) peek(k key) Result {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.find(k, now)
}

// find returns the token that may be read, if any. The caller holds mu.
func (m *memoryStore) find(k key, now time.Time) Result {
	e := m.tokens[k]
	if e == nil || e.fence.holds > 0 || e.generation != m.generation(e.fence) {
		return Result{}
	}
	age := elapsed(e.since, now)
	if age >= e.life {
		return Result{}
	}
	return cached(e.token, e.fence.org, age, min(m.ttl, e.life)-age)
}

// elapsed returns the time from since until now, by the monotonic or the wall clock, whichever
// gives more: the first stops while a virtual machine is suspended, and the second can be set back.
func elapsed(since, now time.Time) time.Duration {
	return max(0, now.Sub(since), now.Round(0).Sub(since.Round(0)))
}

// generation returns the current generation of a fence. The caller holds mu.
func (m *memoryStore) generation(f *fence) generation { return generation{m.cleared, f.moved} }

func (m *memoryStore) Get(_ context.Context, r request) (Result, snapshot) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.use(r.claims.OrgID)
	return m.find(r.key, now), snapshot{at: now, generation: m.generation(f), fence: f}
}

func (m *memoryStore) Release(before snapshot) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.disuse(before.fence)
}

// use returns the fence of an org, made if there is none. The caller holds mu.
func (m *memoryStore) use(org string) *fence {
	f := m.fences[org]
	if f == nil {
		f = &fence{org: org}
		m.fences[org] = f
	}
	f.uses++
	return f
}

// disuse ends one use of a fence. The caller holds mu.
func (m *memoryStore) disuse(f *fence) {
	f.uses--
	if f.uses == 0 {
		delete(m.fences, f.org)
	}
}

func (m *memoryStore) Put(_ context.Context, before snapshot, r request, token atlas.Token, life time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := before.fence
	if f.token != token && f.token != "" {
		f.moved++
	}
	f.token = token
	age := elapsed(before.at, time.Now())
	life = min(m.ttl+m.stale, age+life)
	if age >= life || before.generation != m.generation(f) {
		return
	}
	old := m.tokens[r.key]
	if old != nil && old.generation == before.generation && old.since.After(before.at) {
		return
	}
	m.remove(old)
	f.uses++
	e := &entry{key: r.key, fence: f, generation: before.generation, token: token, since: before.at, life: life}
	e.order = m.oldest.PushBack(e)
	m.tokens[r.key] = e
	for len(m.tokens) > m.maxTokens {
		m.remove(m.oldest.Front().Value.(*entry))
	}
	if m.sweeper == nil {
		m.sweeper = time.AfterFunc(m.sweepInterval(), m.sweep)
	}
}

// remove removes one token, which may be nil. The caller holds mu.
func (m *memoryStore) remove(e *entry) {
	if e == nil {
		return
	}
	m.oldest.Remove(e.order)
	delete(m.tokens, e.key)
	m.disuse(e.fence)
}

func (m *memoryStore) Drop(_ context.Context, r request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remove(m.tokens[r.key])
}

// sweepInterval is the time between sweeps: half of a token's life, but at least a second.
func (m *memoryStore) sweepInterval() time.Duration { return max((m.ttl+m.stale)/2, time.Second) }

// maxSweep bounds the tokens that one sweep looks at, because it holds mu.
const maxSweep = 4096

// sweep removes tokens that cannot be read any more, so that they do not stay in memory.
func (m *memoryStore) sweep() {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	next := m.oldest.Front()
	for range maxSweep {
		if next == nil {
			break
		}
		e := next.Value.(*entry)
		next = next.Next()
		if elapsed(e.since, now) >= e.life || e.generation != m.generation(e.fence) {
			m.remove(e)
		}
	}
	m.sweeper = nil
	if len(m.tokens) > 0 {
		m.sweeper = time.AfterFunc(m.sweepInterval(), m.sweep)
	}
}

func (m *memoryStore) Hold(org, _ string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.use(org).holds++
}

func (m *memoryStore) Settle(_ context.Context, org, hold string, how outcome) error {
	if hold != "" && how == outcomeUnknown {
		time.AfterFunc(m.settleTime, func() { m.settle(org, hold, how) })
	} else {
		m.settle(org, hold, how)
	}
	return nil
}

func (m *memoryStore) settle(org, hold string, how outcome) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if org == "" {
		m.cleared++
		return
	}
	f := m.fences[org]
	if f != nil && how != outcomeNotDone {
		f.moved++
		f.token = "" // the next answer is probably another token
	}
	if hold != "" {
		f.holds--
		m.disuse(f)
	}
}

func (m *memoryStore) Check() error { return nil }

func (m *memoryStore) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.tokens)
	m.oldest.Init()
	if m.sweeper != nil {
		m.sweeper.Stop()
	}
}
