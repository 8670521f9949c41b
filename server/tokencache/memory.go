package tokencache

import (
	"container/list"
	"context"
	"sync"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// memory remembers in this process. Its fences are readings of one counter that every move advances: a token that was
// asked for at reading n may be remembered if its org's fence has not moved since n. A move forgets what the org has, and
// a held fence lets nothing in, so whatever is there may be handed out.
type memory struct {
	ttl, stale, settle time.Duration
	maxTokens          int

	mu     sync.Mutex
	closed bool                // guarded by mu
	seq    uint64              // guarded by mu; the number of moves so far
	all    fence               // guarded by mu; that of every org
	orgs   map[string]*fence   // guarded by mu; fences that have moved or have tokens behind them
	idle   list.List           // guarded by mu; *fence with neither tokens nor deletes, the one idle longest first
	tokens map[key]*remembered // guarded by mu
	oldest list.List           // guarded by mu; *remembered, the oldest first
}

// fence is that of one org.
type fence struct {
	name      string
	moved     uint64    // when it last moved
	deletes   int       // in progress
	heldUntil time.Time // after a delete whose outcome nobody knows
	tokens    map[key]*remembered
	// answered is what Atlas last answered, "" if nothing since the fence moved. Another answer than that means that somebody has
	// deleted the one behind our back, or that the other is the older: nobody knows which, so the fence moves and neither is kept.
	answered atlas.Token
	idle     *list.Element // in memory.idle
}

func (f *fence) held(now time.Time) bool { return f.deletes > 0 || now.Before(f.heldUntil) }

// remembered is one token, under one credential.
type remembered struct {
	key   key
	org   string
	fence *fence
	token atlas.Token
	since time.Time // Atlas was asked
	fresh time.Time // a hit until then
	until time.Time // kept until then
	order *list.Element

	expiry *time.Timer // forgets it
}

func newMemory(cfg Config) *memory {
	return &memory{
		ttl: cfg.TTL, stale: cfg.StaleIfError, settle: cfg.SettleTime, maxTokens: cfg.MaxTokens,
		orgs: map[string]*fence{}, tokens: map[key]*remembered{},
	}
}

// peek returns what is remembered and nothing else.
func (m *memory) peek(k key, cred Credential) found {
	now := time.Now()
	m.mu.Lock()
	r := m.tokens[k] // what is in there never changes
	m.mu.Unlock()
	return r.found(cred, now)
}

// found is r as cred may have it at that time. r may be nil.
func (r *remembered) found(cred Credential, now time.Time) found {
	if r == nil || !now.Before(r.until) || !cred.isOf(r.org) {
		return found{}
	}
	return found{r.token, r.org, now.Sub(r.since), r.fresh.Sub(now)}
}

func (m *memory) look(_ context.Context, k key, cred Credential) (found, view) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	v := view{at: now, seq: m.seq}
	f := m.orgs[fenceName(cred.Org())]
	v.valid = !m.all.held(now) && (f == nil || !f.held(now))
	return m.tokens[k].found(cred, now), v // while a fence is held, nothing is behind it
}

func (m *memory) fill(_ context.Context, v view, k key, cred Credential, token atlas.Token, life time.Duration) {
	now := time.Now()
	r := &remembered{key: k, org: cred.Org(), token: token, since: v.at}
	r.fresh = earliest(v.at.Add(m.ttl), now.Add(life))
	r.until = earliest(v.at.Add(m.ttl+m.stale), now.Add(life))
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	f := m.fence(cred.Org())
	if f.answered != "" && f.answered != token {
		m.move(f)
		f.answered = token
		return
	}
	f.answered = token
	m.file(f)
	if !v.valid || !now.Before(r.until) || m.all.moved > v.seq || m.all.held(now) || f.moved > v.seq || f.held(now) {
		return
	}
	m.forget(k)
	m.remember(f, r)
	for len(m.tokens) > m.maxTokens {
		m.forget(m.oldest.Front().Value.(*remembered).key)
	}
	r.expiry = time.AfterFunc(r.until.Sub(now), func() { m.expire(r) }) // also if nobody asks for it any more
}

// fenceName stands for an org: what a JWT that nobody has verified says may be of any length.
func fenceName(org string) string { return publicID("org", org) }

// fence returns the fence of an org, which may be a new one that is not filed. The caller holds mu.
func (m *memory) fence(org string) *fence {
	name := fenceName(org)
	if f := m.orgs[name]; f != nil {
		return f
	}
	return &fence{name: name, tokens: map[key]*remembered{}}
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// remember puts r behind f. The caller holds mu.
func (m *memory) remember(f *fence, r *remembered) {
	r.fence, r.order = f, m.oldest.PushBack(r)
	m.tokens[r.key], f.tokens[r.key] = r, r
	m.file(f)
}

// forget removes one token. The caller holds mu.
func (m *memory) forget(k key) {
	r := m.tokens[k]
	if r == nil {
		return
	}
	if r.expiry != nil {
		r.expiry.Stop()
	}
	m.oldest.Remove(r.order)
	delete(m.tokens, k)
	delete(r.fence.tokens, k)
	m.file(r.fence)
}

func (m *memory) expire(r *remembered) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tokens[r.key] == r {
		m.forget(r.key)
	}
}

// file keeps a fence among the idle ones if it is idle, and bounds those: the one idle longest gives way to the fence of
// every org, so that what was asked for before it moved is still not remembered. The caller holds mu.
func (m *memory) file(f *fence) {
	if f == &m.all {
		return
	}
	m.orgs[f.name] = f
	if f.idle != nil {
		m.idle.Remove(f.idle)
		f.idle = nil
	}
	if f.deletes == 0 && len(f.tokens) == 0 {
		f.idle = m.idle.PushBack(f)
	}
	for m.idle.Len() > m.maxTokens {
		gone := m.idle.Remove(m.idle.Front()).(*fence)
		delete(m.orgs, gone.name)
		m.all.moved = max(m.all.moved, gone.moved)
		if gone.heldUntil.After(m.all.heldUntil) {
			m.all.heldUntil = gone.heldUntil
		}
	}
}

// move moves a fence and forgets what is behind it. The caller holds mu.
func (m *memory) move(f *fence) {
	m.seq++
	f.moved, f.answered = m.seq, ""
	behind := f.tokens
	if f == &m.all {
		behind = m.tokens
		for _, of := range m.orgs {
			of.answered = ""
		}
	}
	for k := range behind {
		m.forget(k)
	}
	m.file(f)
}

func (m *memory) drop(_ context.Context, k key, _ Credential) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget(k)
}

func (m *memory) hold(_ context.Context, org string) hold {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := &m.all
	if org != "" {
		f = m.fence(org)
	}
	f.deletes++
	m.move(f)
	return &memoryHold{m, f}
}

type memoryHold struct {
	memory *memory
	fence  *fence
}

func (h *memoryHold) end(_ context.Context, e ended) error {
	m := h.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	h.fence.deletes--
	m.moveAfter(h.fence, e)
	if e.everything {
		m.moveAfter(&m.all, e)
	}
	return nil
}

// moveAfter moves a fence after a delete. The caller holds mu.
func (m *memory) moveAfter(f *fence, e ended) {
	if e.unknown {
		f.heldUntil = time.Now().Add(m.settle)
	}
	m.move(f)
}

func (m *memory) check() error { return nil }

func (m *memory) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	m.move(&m.all)
}
