package atlas

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestFault77Start: the first login needs no caller, and says whether Atlas refuses the secret.
func TestFault77Start(t *testing.T) {
	for name, tc := range map[string]struct {
		login   error
		valid   bool
		refused bool
	}{
		"accepted": {nil, true, false},
		"refused":  {refusal(), false, true},
		"down":     {&Error{Op: OpLogIn, Kind: KindUnreachable, Err: errors.New("down")}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			withSource(t, func(t *testing.T, f *fakeIdentity, s *TokenSource) {
				f.set(func() { f.loginErr = tc.login })
				s.Start()
				s.Start()
				if status := s.Status(); !status.Starting || status.Valid || status.Refused {
					t.Errorf("at first: %+v", status)
				}
				advance(time.Second)
				if status := s.Status(); status.Starting || status.Valid != tc.valid || status.Refused != tc.refused {
					t.Errorf("after a second: %+v", status)
				}
				s.Start()
				wantCounts(t, f, "1 logins, 0 refreshes")
			})
		})
	}
}

// TestFault85FarExpiry: a JWT that lives for years is refreshed every day or two.
func TestFault85FarExpiry(t *testing.T) {
	for name, expiry := range map[string]time.Time{
		"3 years":    time.Date(2003, 1, 1, 0, 0, 0, 0, time.UTC), // a bubble begins in 2000
		"10 years":   time.Date(2010, 1, 1, 0, 0, 0, 0, time.UTC),
		"9999-12-31": time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	} {
		t.Run(name, func(t *testing.T) {
			withSource(t, func(t *testing.T, f *fakeIdentity, s *TokenSource) {
				f.set(func() { f.expiry = expiry })
				mustToken(t, s)
				advance(12 * time.Hour)
				wantCounts(t, f, "1 logins, 0 refreshes")
				advance(10 * 24 * time.Hour)
				var logins, refreshes int
				f.set(func() { logins, refreshes = f.logins, f.refreshes })
				if logins != 1 || refreshes < 8 || refreshes > 12 {
					t.Errorf("in ten days: %s", f.counts())
				}
				if status := s.Status(); !status.Valid || status.Expires.Before(time.Now().AddDate(2, 0, 0)) {
					t.Errorf("%+v", status)
				}
			})
		})
	}
}

// TestFault89SecretChangedDuringLogin: a secret that comes during a login with the old one is tried
// as soon as that is refused, for the callers that wait as well.
func TestFault89SecretChangedDuringLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeIdentity{life: time.Hour, latency: time.Second, wrong: []UserAuthToken{"old"}}
		var mu sync.Mutex
		secret := UserAuthToken("old")
		s := NewTokenSource(TokenSourceConfig{Client: f, Secret: func() (UserAuthToken, error) {
			mu.Lock()
			defer mu.Unlock()
			return secret, nil
		}})
		defer s.Close()
		start := time.Now()
		time.AfterFunc(500*time.Millisecond, func() {
			mu.Lock()
			secret = "new"
			mu.Unlock()
			s.SecretChanged()
		})
		cred, err := s.Credential(t.Context())
		if took := time.Since(start); err != nil || cred.Secret != "new" || took != 2*time.Second {
			t.Errorf("got %v after %v", err, took)
		}
		wantCounts(t, f, "2 logins, 0 refreshes")
	})
	t.Run("the same secret", func(t *testing.T) {
		withSource(t, func(t *testing.T, f *fakeIdentity, s *TokenSource) {
			f.set(func() { f.loginErr = refusal() })
			time.AfterFunc(50*time.Millisecond, s.SecretChanged)
			if _, err := s.Credential(t.Context()); err == nil {
				t.Error("no error")
			}
			wantCounts(t, f, "1 logins, 0 refreshes") // a refused secret is not tried twice
		})
	})
}

// TestLoginPace: an Atlas that refuses each JWT when it is used for the second time gets a few
// logins, and not one per call.
func TestLoginPace(t *testing.T) {
	withSource(t, func(t *testing.T, f *fakeIdentity, s *TokenSource) {
		used := map[JWT]int{}
		worked := 0
		for range 600 {
			_, err := withReLogin(t.Context(), s, func(_ context.Context, jwt JWT) (string, error) {
				if used[jwt]++; used[jwt] > 1 {
					return "", unauthorized()
				}
				return "done", nil
			})
			if err == nil {
				worked++
			} else if Classify(err) != ClassUnauthorized {
				t.Fatal(err)
			}
			advance(time.Second)
		}
		t.Logf("in ten minutes: %s, %d of 600 calls worked", f.counts(), worked)
		var logins int
		f.set(func() { logins = f.logins })
		if logins > 25 {
			t.Errorf("in ten minutes: %s", f.counts())
		}
		// Atlas is well again: so is the source, in the time that it has set itself.
		advance(maxRefusedWait * 6 / 5)
		if _, err := withReLogin(t.Context(), s, func(context.Context, JWT) (string, error) { return "done", nil }); err != nil {
			t.Error(err)
		}
	})
}

// TestRevokedDuringRefresh: JWTs are revoked while a refresh is in flight. What the refresh brings
// is revoked too, so the callers get a JWT of a login instead of an error.
func TestRevokedDuringRefresh(t *testing.T) {
	withSource(t, func(t *testing.T, f *fakeIdentity, s *TokenSource) {
		old := mustToken(t, s)
		f.set(func() { f.latency = 20 * time.Second })
		for f.counts() == "1 logins, 0 refreshes" {
			advance(10 * time.Second)
		}
		_, err := withReLogin(t.Context(), s, func(_ context.Context, jwt JWT) (string, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			if jwt == old || f.logins == 1 {
				return "", unauthorized()
			}
			return "done", nil
		})
		if err != nil || s.Err() != nil {
			t.Errorf("got %v, Err returns %v", err, s.Err())
		}
		wantCounts(t, f, "2 logins, 1 refreshes")
	})
}
