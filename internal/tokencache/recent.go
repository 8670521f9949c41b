package tokencache

import "sync"

// recent has what was added last, by key: at least size values, and less than twice as many.
// Callers can make up any number of credentials, so there is a bound to what is kept of them.
type recent[V any] struct {
	size int

	mu          sync.Mutex
	young, aged map[key]V // guarded by mu
}

func newRecent[V any](size int) *recent[V] {
	return &recent[V]{size: size, young: map[key]V{}}
}

func (r *recent[V]) add(k key, v V) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.young[k] = v
	if len(r.young) >= r.size {
		r.young, r.aged = make(map[key]V, r.size), r.young
	}
}

func (r *recent[V]) get(k key) (v V, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v, ok = r.young[k]; !ok {
		v, ok = r.aged[k]
	}
	return v, ok
}

// of returns the value for k, which compute makes if there is none.
func (r *recent[V]) of(k key, compute func() V) V {
	v, ok := r.get(k)
	if !ok {
		v = compute() // two callers may do it at the same time
		r.add(k, v)
	}
	return v
}
