package atlas

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestRetire: a retired source refreshes nothing any more. Its callers are still answered, by a
// login once the JWT has expired.
func TestRetire(t *testing.T) {
	for _, during := range []bool{false, true} {
		withSource(t, func(t *testing.T, f *fakeIdentity, s *TokenSource) {
			f.set(func() { f.latency = time.Second })
			first := make(chan error)
			go func() {
				_, err := s.Credential(t.Context())
				first <- err
			}()
			synctest.Wait()
			if during {
				s.Retire()
			}
			if err := <-first; err != nil {
				t.Errorf("the first call: %v", err)
			}
			s.Retire()
			advance(59 * time.Minute)
			mustToken(t, s)
			wantCounts(t, f, "1 logins, 0 refreshes")
			advance(2 * time.Minute)
			mustToken(t, s)
			wantCounts(t, f, "2 logins, 0 refreshes")
			advance(24 * time.Hour)
			wantCounts(t, f, "2 logins, 0 refreshes")
		})
	}
}
