package tokencache

// memo keeps what was computed of the credentials that came last. A caller brings the same credential call after call, and to parse it,
// or to derive something from it, costs more than the rest of what a cache does.
type memo[T any] struct{ *recent[*T] }

func newMemo[T any](most int) *memo[T] { return &memo[T]{newRecent[*T](most)} }

// of returns what compute has returned for k, which has to be the same each time. Nobody changes it.
func (m *memo[T]) of(k key, compute func() T) *T {
	if v := m.touch(k); v != nil {
		return v
	}
	v := compute() // two callers may do it at the same time
	m.add(k, &v)
	return &v
}

// touch looks for k, and makes it one of the young.
func (m *memo[T]) touch(k key) *T {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v := m.young[k]; v != nil {
		return v
	}
	v := m.aged[k]
	if v != nil {
		m.put(k, v)
	}
	return v
}
