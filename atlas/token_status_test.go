package atlas

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestStatus: what an operator sees of a source, from before its first login until its JWT is
// refused.
func TestStatus(t *testing.T) {
	withSource(t, func(t *testing.T, f *fakeIdentity, s *TokenSource) {
		if status := s.Status(); status != (TokenStatus{}) {
			t.Errorf("before the first call: %+v", status)
		}
		start := time.Now()
		mustToken(t, s)
		status := s.Status()
		if !status.Valid || status.Refused || status.Issued.Sub(start) > time.Second || !status.FailedAt.IsZero() {
			t.Errorf("after a login: %+v", status)
		}
		if life := status.Expires.Sub(start); life < 59*time.Minute || life > 61*time.Minute {
			t.Errorf("it expires after %v", life)
		}
		if due := status.NextDue.Sub(start); due < 26*time.Minute || due > 34*time.Minute {
			t.Errorf("it is renewed after %v", due)
		}
		f.set(func() { f.refreshErr, f.loginErr = refusal(), refusal() })
		advance(35 * time.Minute)
		synctest.Wait()
		status = s.Status()
		if !status.Valid || status.Refused || status.FailedAt.IsZero() {
			t.Errorf("after a refused refresh: %+v", status)
		}
		advance(30 * time.Minute)
		synctest.Wait()
		status = s.Status()
		if status.Valid || !status.Refused || !s.Refused() || !status.Issued.IsZero() || !status.Expires.IsZero() || status.NextDue.IsZero() {
			t.Errorf("after its JWT has expired: %+v", status)
		}
	})
}
