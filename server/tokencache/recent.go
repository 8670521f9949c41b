package tokencache

import "sync"

// recent is a set of what was added last: of so many at least, and of twice as many at most.
type recent struct {
	size int

	mu          sync.Mutex
	young, aged map[key]struct{} // guarded by mu
}

func newRecent(size int) *recent { return &recent{size: size, young: map[key]struct{}{}} }

func (s *recent) add(k key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.young[k] = struct{}{}
	if len(s.young) >= s.size {
		s.young, s.aged = map[key]struct{}{}, s.young
	}
}

func (s *recent) has(k key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, young := s.young[k]
	_, aged := s.aged[k]
	return young || aged
}
