package atlas

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestFault35SecretRefused: a new secret that Atlas does not take, as a half-written one, leaves the one before in use, and is
// not tried over and over.
func TestFault35SecretRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeIdentity{life: time.Hour}
		present := UserAuthToken("first")
		s := newTokenSource(f, TokenSourceConfig{Secret: func() (UserAuthToken, error) { return present, nil }})
		defer s.Close()
		jwt := mustToken(t, s)
		again := func(secret UserAuthToken, wrong []UserAuthToken, want string) {
			t.Helper()
			if secret != present {
				present = secret
				s.SecretChanged()
			}
			f.set(func() { f.wrong = wrong })
			s.Invalidate(jwt)
			jwt = mustToken(t, s)
			wantCounts(t, f, want)
		}
		again("half", []UserAuthToken{"half"}, "3 logins, 0 refreshes") // the half one, then the first
		again("half", []UserAuthToken{"half"}, "4 logins, 0 refreshes") // the first alone
		again("whole", []UserAuthToken{"half", "first"}, "5 logins, 0 refreshes")
		again("early", []UserAuthToken{"early"}, "7 logins, 0 refreshes")
		again("early", []UserAuthToken{"whole"}, "9 logins, 0 refreshes") // the one before is dropped, so it has its turn
		again("early", nil, "10 logins, 0 refreshes")

		// If Atlas takes neither, there is nothing left to fall back on.
		present = "bad"
		f.set(func() { f.wrong = []UserAuthToken{"bad", "early"} })
		s.Invalidate(jwt)
		for _, want := range []string{"12 logins, 0 refreshes", "13 logins, 0 refreshes"} {
			for range 3 {
				if _, err := s.Token(t.Context()); !errors.As(err, new(*CredentialError)) {
					t.Errorf("got %v, want a CredentialError", err)
				}
				wantCounts(t, f, want)
			}
			advance(40 * time.Second)
		}
	})
}
