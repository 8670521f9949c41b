package atlas

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestFault35SecretRefused checks that a new secret that Atlas refuses, such as a half-written one,
// leaves the last accepted one in use, and is not tried repeatedly.
func TestFault35SecretRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeAtlas{life: time.Hour}
		present := UserAuthToken("first")
		s := NewIdentity(IdentityConfig{Client: f, Secret: func() UserAuthToken { return present }})
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

// TestSecretStaysWithItsJWT checks that the JWT and the secret that it was issued for both stay
// while Atlas refuses refresh and login.
func TestSecretStaysWithItsJWT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeAtlas{life: time.Hour}
		s := NewIdentity(IdentityConfig{Client: f, Profile: "acme", Secret: plantedSecret})
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

// TestOrgChanged checks that a call for one org is not repeated for another one that the secret
// belongs to now.
func TestOrgChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeAtlas{life: time.Hour, org: "one"}
		s := NewIdentity(IdentityConfig{Client: f, Secret: plantedSecret})
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

// TestLoginAfterOutage checks that after an outage a login is tried about once a second however
// long it lasts, or as soon as the circuit breaker allows.
func TestLoginAfterOutage(t *testing.T) {
	for _, outage := range []*Error{
		{Op: OpLogIn, Kind: KindUnreachable, Err: errCutShort},
		{Op: OpLogIn, Kind: KindTimeout, Err: errTimeout},
		{Op: OpLogIn, Kind: KindStatus, StatusCode: 503, Err: statusError(503)},
		{Op: OpLogIn, Kind: KindUnavailable, RetryAfter: 700 * time.Millisecond, Err: errCutShort},
	} {
		t.Run(string(outage.Kind), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeAtlas{life: time.Hour, loginErr: outage}
				s := NewIdentity(IdentityConfig{Client: f, Secret: plantedSecret})
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

// TestFault77Start checks that the first login needs no caller, and shows whether Atlas refuses the
// secret.
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
			withIdentity(t, func(t *testing.T, f *fakeAtlas, s *Identity) {
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
	t.Run("down, then refused, without a caller", func(t *testing.T) {
		withIdentity(t, func(t *testing.T, f *fakeAtlas, s *Identity) {
			f.set(func() { f.loginErr = &Error{Op: OpLogIn, Kind: KindUnreachable, Err: errors.New("down")} })
			s.Start()
			advance(5 * time.Second)
			if s.Status().Refused {
				t.Error("refused while Atlas is down")
			}
			f.set(func() { f.loginErr = refusal() })
			advance(5 * time.Second)
			if !s.Status().Refused {
				t.Error("the refusal is not noticed")
			}
		})
	})
}

// TestFault85FarExpiry checks that a JWT that lives for years is refreshed every day or two.
func TestFault85FarExpiry(t *testing.T) {
	for name, expiry := range map[string]time.Time{
		"3 years":    time.Date(2003, 1, 1, 0, 0, 0, 0, time.UTC), // a bubble begins in 2000
		"10 years":   time.Date(2010, 1, 1, 0, 0, 0, 0, time.UTC),
		"9999-12-31": time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	} {
		t.Run(name, func(t *testing.T) {
			withIdentity(t, func(t *testing.T, f *fakeAtlas, s *Identity) {
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

// TestFault89SecretChangedDuringLogin checks that a secret that arrives during a login with the old
// one is tried as soon as that is refused, for waiting callers too.
func TestFault89SecretChangedDuringLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeAtlas{life: time.Hour, latency: time.Second, wrong: []UserAuthToken{"old"}}
		var mu sync.Mutex
		secret := UserAuthToken("old")
		s := NewIdentity(IdentityConfig{Client: f, Secret: func() UserAuthToken {
			mu.Lock()
			defer mu.Unlock()
			return secret
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
		withIdentity(t, func(t *testing.T, f *fakeAtlas, s *Identity) {
			f.set(func() { f.loginErr = refusal() })
			time.AfterFunc(50*time.Millisecond, s.SecretChanged)
			if _, err := s.Credential(t.Context()); err == nil {
				t.Error("no error")
			}
			wantCounts(t, f, "1 logins, 0 refreshes") // a refused secret is not tried twice
		})
	})
}

// TestLoginPace checks that an Atlas that refuses each JWT on its second use gets a few logins
// instead of one per call.
func TestLoginPace(t *testing.T) {
	withIdentity(t, func(t *testing.T, f *fakeAtlas, s *Identity) {
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
		// Atlas accepts JWTs again, and so does the identity after its backoff.
		advance(maxRefusedWait * 6 / 5)
		if _, err := withReLogin(t.Context(), s, func(context.Context, JWT) (string, error) { return "done", nil }); err != nil {
			t.Error(err)
		}
	})
}

// TestRevokedDuringRefresh checks that callers get a JWT of a new login if JWTs are revoked while a
// refresh is in flight, because the refreshed JWT is revoked too.
func TestRevokedDuringRefresh(t *testing.T) {
	withIdentity(t, func(t *testing.T, f *fakeAtlas, s *Identity) {
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
		if err != nil || s.Status().Err != nil {
			t.Errorf("got %v, Err returns %v", err, s.Status().Err)
		}
		wantCounts(t, f, "2 logins, 1 refreshes")
	})
}

// TestStatus checks the status of an identity from before its first login until its JWT is refused.
func TestStatus(t *testing.T) {
	withIdentity(t, func(t *testing.T, f *fakeAtlas, s *Identity) {
		if status := s.Status(); status != (IdentityStatus{}) {
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
		if status.Valid || !status.Refused || !status.Issued.IsZero() || !status.Expires.IsZero() || status.NextDue.IsZero() {
			t.Errorf("after its JWT has expired: %+v", status)
		}
	})
}

// TestRetire checks that a retired identity refreshes nothing, and that its callers still get a
// JWT, by a login once the last one has expired.
func TestRetire(t *testing.T) {
	for _, during := range []bool{false, true} {
		withIdentity(t, func(t *testing.T, f *fakeAtlas, s *Identity) {
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
