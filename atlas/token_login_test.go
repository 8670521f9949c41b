package atlas

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestFault35SecretRefused: a new secret that Atlas does not take, as a half-written one, leaves
// the one before in use, and is not tried over and over.
func TestFault35SecretRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeIdentity{life: time.Hour}
		present := UserAuthToken("first")
		s := NewTokenSource(TokenSourceConfig{Client: f, Secret: func() (UserAuthToken, error) { return present, nil }})
		defer s.Close()
		jwt := mustToken(t, s)
		again := func(secret UserAuthToken, wrong []UserAuthToken, want string) {
			t.Helper()
			if secret != present {
				present = secret
				s.SecretChanged()
			}
			f.set(func() { f.wrong = wrong })
			advance(minLife) // sooner than that, logins are paced
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
		advance(minLife)
		s.Invalidate(jwt)
		for _, want := range []string{"12 logins, 0 refreshes", "13 logins, 0 refreshes"} {
			for range 3 {
				if _, err := s.Credential(t.Context()); !errors.As(err, new(*CredentialError)) {
					t.Errorf("got %v, want a CredentialError", err)
				}
				wantCounts(t, f, want)
			}
			advance(40 * time.Second)
		}
	})
}

// TestSecretStaysWithItsJWT: while Atlas refuses refresh and login for a time, the JWT stays and so
// does the secret that it was traded for. To forget the one and keep the other made every profile
// in that state look like the same one.
func TestSecretStaysWithItsJWT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeIdentity{life: time.Hour}
		s := NewTokenSource(TokenSourceConfig{Client: f, Profile: "acme", Secret: plantedSecret})
		defer s.Close()
		mustToken(t, s)
		f.set(func() { f.refreshErr, f.loginErr = refusal(), refusal() })
		advance(35 * time.Minute) // at least one refresh and one login, all refused
		for _, recovered := range []bool{false, true} {
			if recovered {
				f.set(func() { f.refreshErr, f.loginErr = nil, nil })
				advance(10 * time.Minute)
			}
			cred, err := s.Credential(t.Context())
			if err != nil || cred.Secret != "planted" || cred.Profile != "acme" {
				t.Errorf("recovered %v: the secret of the JWT is gone, or its profile: %q, %v", recovered, cred.Profile, err)
			}
		}
	})
}

// TestOrgChanged: what was begun for one org does not go on for another that the secret has come to
// be of.
func TestOrgChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeIdentity{life: time.Hour, org: "one"}
		s := NewTokenSource(TokenSourceConfig{Client: f, Secret: plantedSecret})
		defer s.Close()
		mustToken(t, s)
		calls := 0
		for _, org := range []string{"two", "two"} {
			f.set(func() { f.org = org })
			_, err := withReLogin(t.Context(), s, func(context.Context, JWT) (string, error) { calls++; return "", unauthorized() })
			if calls == 1 && !errors.Is(err, ErrOrgChanged) {
				t.Errorf("got %v, want ErrOrgChanged", err)
			}
		}
		if calls != 3 { // one, and then one with its replay
			t.Errorf("%d calls, want 3", calls)
		}
	})
}

// TestLoginAfterOutage: an outage is no refusal. A login is tried again about once a second however
// long it lasts, or as soon as the circuit breaker in front of Atlas says.
func TestLoginAfterOutage(t *testing.T) {
	for _, outage := range []*Error{
		{Op: OpLogIn, Kind: KindUnreachable, Err: errCutShort},
		{Op: OpLogIn, Kind: KindTimeout, Err: errTimeout},
		{Op: OpLogIn, Kind: KindStatus, StatusCode: 503, Err: statusError(503)},
		{Op: OpLogIn, Kind: KindUnavailable, RetryAfter: 700 * time.Millisecond, Err: errCutShort},
	} {
		t.Run(outage.Kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeIdentity{life: time.Hour, loginErr: outage}
				s := NewTokenSource(TokenSourceConfig{Client: f, Secret: plantedSecret})
				defer s.Close()
				for range 600 {
					if _, err := s.Credential(t.Context()); !errors.Is(err, outage.Err) {
						t.Fatalf("got %v, want %v", err, outage)
					}
					advance(100 * time.Millisecond)
				}
				if f.logins < 45 || f.logins > 90 {
					t.Errorf("%d logins in a minute, want about one a second", f.logins)
				}
				f.set(func() { f.loginErr = nil })
				advance(1200 * time.Millisecond)
				mustToken(t, s)
			})
		})
	}
}
