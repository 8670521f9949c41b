package tokencache

import "sync"

// refusals keep answers out of the cache that are older than a refusal of their credential. Calls for one credential overlap,
// and a delete overlaps with them, so Atlas may refuse one and the answer to another, which it accepted before, land after that.
type refusals struct {
	mu    sync.Mutex
	asked map[key]*asked // guarded by mu; only credentials with calls in flight, so that made-up ones do not pile up
}

// asked is a credential with calls in flight.
type asked struct {
	calls int // guarded by refusals.mu

	storing sync.RWMutex // held for reading while an answer is stored
	refused int          // guarded by storing; how often it was, since there is a call in flight
}

// asking is one of these calls.
type asking struct {
	*asked

	key  key
	seen int // of the refusals, when it began
}

func newRefusals() *refusals { return &refusals{asked: map[key]*asked{}} }

// begin is called before Atlas is.
func (s *refusals) begin(k key) asking {
	s.mu.Lock()
	a := s.asked[k]
	if a == nil {
		a = &asked{}
		s.asked[k] = a
	}
	a.calls++
	s.mu.Unlock()
	a.storing.RLock()
	defer a.storing.RUnlock()
	return asking{a, k, a.refused}
}

func (s *refusals) end(a asking) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a.calls--
	if a.calls == 0 {
		delete(s.asked, a.key)
	}
}

// store has f store the call's answer, and tells it whether the credential was refused since the call began. It keeps a refusal
// waiting meanwhile, so that what is stored is there to be removed.
func (a asking) store(f func(refused bool)) {
	a.storing.RLock()
	defer a.storing.RUnlock()
	f(a.refused != a.seen)
}

// refuse notes that Atlas has refused a credential. After it, the answers of calls that began before are not stored.
func (s *refusals) refuse(k key) {
	s.mu.Lock()
	a := s.asked[k]
	s.mu.Unlock()
	if a == nil {
		return
	}
	a.storing.Lock()
	defer a.storing.Unlock()
	a.refused++
}
