package tokencache

import (
	"context"
	"sync"
	"time"
)

// remembering is the layer that remembers what the next one answers.
type remembering struct {
	store    store
	next     layer
	timeout  time.Duration // of a delete, which has a deadline of its own because it outlives its caller
	accepted *recent[key]

	ctx    context.Context // of deletes
	cancel context.CancelFunc
	mu     sync.Mutex
	closed bool           // guarded by mu
	work   sync.WaitGroup // added to under mu, while not closed
}

func newRemembering(s store, next layer, cfg Config) *remembering {
	r := &remembering{store: s, next: next, timeout: cfg.CallTimeout, accepted: newRecent[key](cfg.MaxTokens)}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// create is what is remembered, else what the next layer says, else what is kept for when Atlas fails.
func (m *remembering) create(ctx context.Context, r request) (Result, error) {
	found, v := m.store.get(ctx, r)
	if found.usable() && !r.fresh {
		return found.result(), nil
	}
	result, err := m.next.create(ctx, r)
	switch {
	case isRefusal(err):
		m.store.forget(ctx, r)
	case err != nil && !r.fresh && isFailure(err):
		// It is looked for again: what was there before the call may have been deleted meanwhile.
		if kept, ok := m.kept(context.WithoutCancel(ctx), r); ok {
			return kept, nil
		}
	case err == nil:
		m.accepted.add(r.key)
		if result.Org != "" { // without one there is no fence to stand behind
			m.store.put(ctx, v, r, result.Token, life(r))
		}
	}
	return result, err
}

// unlimited is the life of a JWT that does not say when it ends.
const unlimited = 100 * 365 * 24 * time.Hour

func life(r request) time.Duration {
	if expiry := r.cred.Claims().Expiry; !expiry.IsZero() {
		return time.Until(expiry)
	}
	return unlimited
}

func (m *remembering) kept(ctx context.Context, r request) (Result, bool) {
	found, _ := m.store.get(ctx, r)
	return found.result(), found.there()
}

// delete goes on when its caller has left: only its end says what has to be forgotten.
func (m *remembering) delete(ctx context.Context, r request) (string, error) {
	type ending struct {
		org    string
		err    error
		panics any
	}
	ended := make(chan ending, 1)
	if !m.spawn(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.timeout)
		defer cancel()
		defer context.AfterFunc(m.ctx, cancel)()
		e := ending{panics: errGoexit}
		defer func() { ended <- e }()
		e.panics = protect(func() { e.org, e.err = m.deleteAndForget(ctx, r) })
	}) {
		return "", errClosed
	}
	select {
	case e := <-ended:
		if e.panics != nil {
			panic(e.panics)
		}
		return e.org, e.err
	case <-ctx.Done():
		return "", &UnsettledError{ctx.Err()}
	}
}

func (m *remembering) deleteAndForget(ctx context.Context, r request) (org string, err error) {
	deletion := m.store.deletion(r.org())
	// What Atlas has not accepted may be made up, and then it has no say in what others are answered.
	held := r.org() != "" && (r.cred.Profile != "" || m.accepted.has(r.key))
	if held {
		deletion.begin(ctx)
	}
	how := outcomeUnknown // unless it returns, as after a panic
	defer func() {
		if how == outcomeDone || held {
			if unsettled := deletion.end(ctx, how); err == nil {
				err = unsettled
			}
		}
		if isRefusal(err) || how == outcomeUnknown && !held {
			m.store.forget(ctx, r)
		}
	}()
	org, err = m.next.delete(ctx, r)
	if how = outcomeOf(err); how == outcomeDone {
		m.accepted.add(r.key)
	}
	return org, err
}

// spawn runs f in the background, unless the layer is closed.
func (m *remembering) spawn(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.work.Go(f)
	}
	return !m.closed
}

// close ends the deletes in progress and waits for them.
func (m *remembering) close() {
	m.cancel()
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.work.Wait()
	m.store.close()
}

// recent is a set of what was added last: of at least so many, and of twice as many at most.
type recent[T comparable] struct {
	size int

	mu          sync.Mutex
	young, aged map[T]struct{} // guarded by mu
}

func newRecent[T comparable](size int) *recent[T] {
	return &recent[T]{size: size, young: map[T]struct{}{}}
}

func (s *recent[T]) add(v T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.young[v] = struct{}{}
	if len(s.young) >= s.size {
		s.young, s.aged = make(map[T]struct{}, s.size), s.young
	}
}

func (s *recent[T]) has(v T) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, young := s.young[v]
	_, aged := s.aged[v]
	return young || aged
}
