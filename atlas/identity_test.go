package atlas

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// withIdentity runs test in a bubble of fake time.
func withIdentity(t *testing.T, test func(t *testing.T, f *fakeAtlas, s *Identity)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := &fakeAtlas{life: time.Hour, latency: 100 * time.Millisecond}
		s := NewIdentity(IdentityConfig{Client: f, Secret: plantedSecret})
		defer s.Close()
		test(t, f, s)
	})
}

func wantCounts(t *testing.T, f *fakeAtlas, want string) {
	t.Helper()
	if got := f.counts(); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func mustToken(t *testing.T, s *Identity) JWT {
	t.Helper()
	cred, err := s.Credential(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return cred.JWT
}

// TestFault33SharedLogin checks that a thousand callers share one login, and that each honours its
// own deadline.
func TestFault33SharedLogin(t *testing.T) {
	withIdentity(t, func(t *testing.T, f *fakeAtlas, s *Identity) {
		var ok, late sync.WaitGroup
		for i := range 1000 {
			if i%10 != 0 {
				ok.Go(func() { mustToken(t, s) })
				continue
			}
			late.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				defer cancel()
				if _, err := s.Credential(ctx); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("a caller with half the time got %v", err)
				}
			})
		}
		late.Wait()
		ok.Wait()
		wantCounts(t, f, "1 logins, 0 refreshes")
	})
}

// TestFault34FirstWaiterCancels checks that a login continues for the other waiters.
func TestFault34FirstWaiterCancels(t *testing.T) {
	withIdentity(t, func(t *testing.T, f *fakeAtlas, s *Identity) {
		ctx, cancel := context.WithCancel(t.Context())
		first := make(chan error)
		go func() {
			_, err := s.Credential(ctx)
			first <- err
		}()
		synctest.Wait()
		second := make(chan error)
		go func() {
			_, err := s.Credential(t.Context())
			second <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("the first got %v", err)
		}
		if err := <-second; err != nil {
			t.Errorf("the second got %v", err)
		}
		wantCounts(t, f, "1 logins, 0 refreshes")
	})
}

// TestRefresh checks that a JWT is refreshed at about half of its life, and that no call waits for
// that.
func TestRefresh(t *testing.T) {
	withIdentity(t, func(t *testing.T, f *fakeAtlas, s *Identity) {
		first := mustToken(t, s)
		advance(26 * time.Minute)
		wantCounts(t, f, "1 logins, 0 refreshes")
		f.set(func() { f.latency = 10 * time.Minute })
		advance(8 * time.Minute) // the refresh has begun
		wantCounts(t, f, "1 logins, 1 refreshes")
		start := time.Now()
		if jwt := mustToken(t, s); jwt != first || time.Since(start) != 0 {
			t.Errorf("waited %v for another JWT", time.Since(start))
		}
		advance(10 * time.Minute)
		synctest.Wait()
		if jwt := mustToken(t, s); jwt == first {
			t.Error("the JWT is still the first")
		}
	})
}

// TestLateTimer checks that a timer that fires after another renewal was scheduled does nothing.
func TestLateTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeAtlas{life: time.Hour}
		var fired []func()
		clock := Clock{AfterFunc: func(_ time.Duration, f func()) func() bool {
			fired = append(fired, f)
			return func() bool { return false }
		}}
		s := NewIdentity(IdentityConfig{Client: f, Secret: plantedSecret, Clock: clock})
		defer s.Close()
		mustToken(t, s)
		advance(time.Minute)
		fired[0]()
		synctest.Wait()
		wantCounts(t, f, "1 logins, 1 refreshes")
		fired[0]()
		synctest.Wait()
		wantCounts(t, f, "1 logins, 1 refreshes")
	})
}

// TestFault31RefreshRefused checks that a refused refresh causes one login and no failed call.
func TestFault31RefreshRefused(t *testing.T) {
	withIdentity(t, func(t *testing.T, f *fakeAtlas, s *Identity) {
		mustToken(t, s)
		f.set(func() { f.refreshErr = refusal() })
		advance(34 * time.Minute)
		synctest.Wait()
		wantCounts(t, f, "2 logins, 1 refreshes")
		mustToken(t, s)
		if err := s.Status().Err; err != nil {
			t.Errorf("Err is %v", err)
		}
	})
}

// TestRefreshFails checks that a refresh that fails without a refusal is retried while the JWT
// still works.
func TestRefreshFails(t *testing.T) {
	withIdentity(t, func(t *testing.T, f *fakeAtlas, s *Identity) {
		first := mustToken(t, s)
		f.set(func() {
			f.refreshErr = &Error{Op: OpRefresh, Kind: KindStatus, StatusCode: 503, Err: errors.New("503")}
		})
		advance(34 * time.Minute)
		if jwt := mustToken(t, s); jwt != first {
			t.Error("the JWT is not the first any more")
		}
		if s.Status().Err == nil {
			t.Error("Err says nothing")
		}
		f.set(func() { f.refreshErr = nil })
		advance(time.Minute)
		synctest.Wait()
		if jwt := mustToken(t, s); jwt == first {
			t.Error("the refresh was not tried again")
		}
		if got := f.counts(); !strings.HasPrefix(got, "1 logins") {
			t.Errorf("%s, want no second login", got)
		}
	})
}

// TestFault30LoginRefused checks that a refused login is retried no sooner than 30 s later, unless
// there is a new secret.
func TestFault30LoginRefused(t *testing.T) {
	withIdentity(t, func(t *testing.T, f *fakeAtlas, s *Identity) {
		f.set(func() { f.loginErr = refusal() })
		for range 100 {
			_, err := s.Credential(t.Context())
			var refused *CredentialError
			if !errors.As(err, &refused) || refused.RetryAfter <= 0 || refused.RetryAfter > 40*time.Second {
				t.Fatalf("got %v, want a CredentialError with a time to wait", err)
			}
			if strings.Contains(err.Error(), "planted") {
				t.Fatal("the error has the secret in it")
			}
		}
		wantCounts(t, f, "1 logins, 0 refreshes")
		advance(29 * time.Second)
		_, _ = s.Credential(t.Context())
		wantCounts(t, f, "1 logins, 0 refreshes")
		advance(8 * time.Second)
		_, _ = s.Credential(t.Context())
		wantCounts(t, f, "2 logins, 0 refreshes")
		_, _ = s.Credential(t.Context())
		wantCounts(t, f, "2 logins, 0 refreshes")
		f.set(func() { f.loginErr = nil })
		s.SecretChanged()
		mustToken(t, s)
		wantCounts(t, f, "3 logins, 0 refreshes")
	})
}

func TestLoginFails(t *testing.T) {
	withIdentity(t, func(t *testing.T, f *fakeAtlas, s *Identity) {
		f.set(func() {
			f.loginErr = &Error{Op: OpLogIn, Kind: KindStatus, StatusCode: 429, RetryAfter: 7 * time.Second, Err: errors.New("429")}
		})
		_, err := s.Credential(t.Context())
		var e *Error
		if !errors.As(err, &e) || e.StatusCode != 429 {
			t.Fatalf("got %v, want Atlas's own 429", err)
		}
		advance(6 * time.Second)
		_, err = s.Credential(t.Context())
		if !errors.As(err, &e) || e.RetryAfter != time.Second {
			t.Errorf("got %v after six of seven seconds, want to wait for one more", err)
		}
		wantCounts(t, f, "1 logins, 0 refreshes")
		f.set(func() { f.loginErr = nil })
		advance(time.Second)
		mustToken(t, s)
		wantCounts(t, f, "2 logins, 0 refreshes")
	})
}

// TestFault32Clock checks that a clock that is wrong by five minutes causes early renewals at most.
func TestFault32Clock(t *testing.T) {
	for _, skew := range []time.Duration{-5 * time.Minute, 5 * time.Minute} {
		for _, life := range []time.Duration{time.Minute, 4 * time.Minute, time.Hour} {
			t.Run(fmt.Sprint(skew, life), func(t *testing.T) {
				withIdentity(t, func(t *testing.T, f *fakeAtlas, s *Identity) {
					f.set(func() { f.skew, f.life, f.latency = skew, life, 0 })
					mustToken(t, s)
					before := time.Now()
					for time.Since(before) < time.Hour {
						advance(time.Second)
						mustToken(t, s)
					}
					f.mu.Lock()
					defer f.mu.Unlock()
					if f.logins != 1 || f.refreshes > 150 {
						t.Errorf("%d logins and %d refreshes in an hour", f.logins, f.refreshes)
					}
				})
			})
		}
	}
}

// TestLifeByAtlasClock checks that a JWT is refreshed at half of its life by the clock of Atlas if
// ours is hours off, also after refreshes, whose orig_iat is that of the login.
func TestLifeByAtlasClock(t *testing.T) {
	for name, claims := range map[string]fakeClaims{"iat": {iat: true}, "orig_iat": {origIat: true}, "both": {true, true}} {
		for _, skew := range []time.Duration{-3 * time.Hour, 3 * time.Hour} {
			t.Run(fmt.Sprint(name, skew), func(t *testing.T) {
				withIdentity(t, func(t *testing.T, f *fakeAtlas, s *Identity) {
					f.set(func() { f.skew, f.claims, f.latency = skew, claims, 0 })
					mustToken(t, s)
					for range 10 {
						advance(35 * time.Minute)
						mustToken(t, s)
					}
					f.mu.Lock()
					defer f.mu.Unlock()
					if f.logins != 1 || f.refreshes < 10 || f.refreshes > 13 { // one in 27 to 33 of the 350 minutes
						t.Errorf("%d logins and %d refreshes in 350 minutes", f.logins, f.refreshes)
					}
				})
			})
		}
	}
}

func TestInvalidate(t *testing.T) {
	withIdentity(t, func(t *testing.T, f *fakeAtlas, s *Identity) {
		first := mustToken(t, s)
		for range 1000 {
			s.Invalidate(first)
		}
		second := mustToken(t, s)
		s.Invalidate(first) // a caller that comes late
		if jwt := mustToken(t, s); jwt != second || jwt == first {
			t.Error("a late refusal of an old JWT dropped the new one")
		}
		wantCounts(t, f, "2 logins, 0 refreshes")
	})
}

func unauthorized() error {
	return &Error{Op: OpCreate, Kind: KindStatus, StatusCode: 401, Err: errors.New("401")}
}

// withReLogin is WithReLogin with what the identity has at present.
func withReLogin[T any](ctx context.Context, s *Identity, call func(context.Context, JWT) (T, error)) (T, error) {
	cred, err := s.Credential(ctx)
	if err != nil {
		var none T
		return none, err
	}
	return WithReLogin(ctx, cred, call)
}

// TestFault08ReLogin checks that a 401 causes one login and one replay for any number of callers,
// and that a second 401 is not reported as the fault of the caller.
func TestFault08ReLogin(t *testing.T) {
	withIdentity(t, func(t *testing.T, f *fakeAtlas, s *Identity) {
		revoked := mustToken(t, s)
		var callers sync.WaitGroup
		for range 1000 {
			callers.Go(func() {
				calls := 0
				got, err := withReLogin(t.Context(), s, func(_ context.Context, jwt JWT) (string, error) {
					calls++
					advance(10 * time.Millisecond)
					if jwt == revoked {
						return "", unauthorized()
					}
					return "done", nil
				})
				if got != "done" || err != nil || calls != 2 {
					t.Errorf("got %q, %v after %d calls", got, err, calls)
				}
			})
		}
		callers.Wait()
		wantCounts(t, f, "2 logins, 0 refreshes")
	})
	t.Run("refused for good", func(t *testing.T) {
		withIdentity(t, func(t *testing.T, f *fakeAtlas, s *Identity) {
			for range 10 {
				_, err := withReLogin(t.Context(), s, func(context.Context, JWT) (string, error) { return "", unauthorized() })
				var refused *CredentialError
				if !errors.As(err, &refused) || refused.RetryAfter <= 0 || !s.Status().Refused || s.Status().Err == nil {
					t.Fatalf("got %v, want a CredentialError with a time to wait; refused: %t, Err returns %v", err, s.Status().Refused, s.Status().Err)
				}
			}
			wantCounts(t, f, "2 logins, 0 refreshes") // and not two for each call
		})
	})
	t.Run("revoked twice within one call", func(t *testing.T) {
		withIdentity(t, func(t *testing.T, f *fakeAtlas, s *Identity) {
			first := mustToken(t, s)
			second := JWT("")
			create := func(_ context.Context, jwt JWT) (string, error) {
				if jwt == first || jwt == second {
					return "", unauthorized()
				}
				return "done", nil
			}
			revoke := func(ctx context.Context, jwt JWT) (string, error) {
				if jwt != first {
					second = jwt
				}
				return create(ctx, jwt)
			}
			if _, err := withReLogin(t.Context(), s, revoke); Classify(err) != ClassUnauthorized {
				t.Fatalf("got %v, want the second 401", err)
			}
			advance(2 * minFailedWait)
			if _, err := withReLogin(t.Context(), s, create); err != nil || s.Status().Refused {
				t.Errorf("two seconds later: %v; refused: %t", err, s.Status().Refused)
			}
			wantCounts(t, f, "3 logins, 0 refreshes")
		})
	})
	t.Run("refused for long", func(t *testing.T) {
		withIdentity(t, func(t *testing.T, f *fakeAtlas, s *Identity) {
			for range 10 * 60 { // a call each second
				_, _ = withReLogin(t.Context(), s, func(context.Context, JWT) (string, error) { return "", unauthorized() })
				advance(time.Second)
			}
			f.set(func() {
				if f.logins < 15 || f.logins > 30 {
					t.Errorf("%d logins in ten minutes, want one about each 30 s", f.logins)
				}
			})
		})
	})
	t.Run("one operation is refused", func(t *testing.T) {
		withIdentity(t, func(t *testing.T, f *fakeAtlas, s *Identity) {
			for range 10 {
				_, err := withReLogin(t.Context(), s, func(context.Context, JWT) (string, error) {
					return "", &Error{Op: OpDelete, Kind: KindStatus, StatusCode: 401, Sent: true, Err: errors.New("401")}
				})
				if Classify(err) != ClassUnauthorized {
					t.Fatalf("a delete got %v", err)
				}
				if _, err := withReLogin(t.Context(), s, func(context.Context, JWT) (string, error) { return "done", nil }); err != nil {
					t.Fatalf("a create got %v", err)
				}
			}
			wantCounts(t, f, "2 logins, 0 refreshes")
			if err := s.Status().Err; s.Status().Refused || err == nil || !strings.Contains(err.Error(), "delete") {
				t.Errorf("refused: %t, Err returns %v", s.Status().Refused, err)
			}
			advance(minRefusedWait)
			if err := s.Status().Err; err != nil {
				t.Errorf("later, Err returns %v", err)
			}
			s.SecretChanged() // perhaps of a user that may delete
			mustToken(t, s)
			wantCounts(t, f, "3 logins, 0 refreshes")
		})
	})
	t.Run("another error", func(t *testing.T) {
		withIdentity(t, func(t *testing.T, _ *fakeAtlas, s *Identity) {
			calls, broken := 0, errors.New("broken")
			_, err := withReLogin(t.Context(), s, func(context.Context, JWT) (string, error) { calls++; return "", broken })
			if !errors.Is(err, broken) || calls != 1 {
				t.Errorf("got %v after %d calls", err, calls)
			}
		})
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeAtlas{life: time.Hour, latency: time.Hour}
		s := NewIdentity(IdentityConfig{Client: f, Secret: plantedSecret})
		waiting := make(chan error)
		go func() {
			_, err := s.Credential(t.Context())
			waiting <- err
		}()
		synctest.Wait()
		s.Close()
		if err := <-waiting; err == nil {
			t.Error("a login went on after Close")
		}
		if _, err := s.Credential(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("got %v, want ErrClosed", err)
		}
	})
}

func FuzzUnverifiedClaims(f *testing.F) {
	for _, seed := range []string{"a.e30.c", "a.eyJleHAiOjF9.c", "a.eyJleHAiOjFlNDAwfQ.c", "..", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if c := JWT(s).UnverifiedClaims(); !c.Expiry.IsZero() && c.Expiry.Unix() < 0 {
			t.Errorf("expiry %v", c.Expiry)
		}
	})
}

// advance lets d pass, in the fake time of a bubble.
func advance(d time.Duration) { <-time.After(d) }
