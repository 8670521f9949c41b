package tokencache

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// bubble runs a test over a fresh world in synthetic time.
func bubble(t *testing.T, cfg Config, test func(t *testing.T, d *testCache)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d := newTestCache(t, newFakeAtlas(), cfg)
		test(t, d)
		synctest.Wait()
		if n := len(d.calls.queues); n != 0 {
			t.Errorf("%d calls are left", n)
		}
	})
}

// readable returns how many tokens may be read, fresh or stale.
func (d *testCache) readable() (n int) {
	d.t.Helper()
	synctest.Wait() // for what goes on
	m := d.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	for k := range m.tokens {
		if m.find(k, time.Now()).Status.Hit {
			n++
		}
	}
	return n
}

// held returns how many tokens are in the maps, readable or not.
func (d *testCache) held() int {
	synctest.Wait() // for what expires just now
	d.memory.mu.Lock()
	defer d.memory.mu.Unlock()
	return len(d.memory.tokens)
}

// fences returns how many orgs are known.
func (d *testCache) fences() int {
	synctest.Wait()
	d.memory.mu.Lock()
	defer d.memory.mu.Unlock()
	return len(d.memory.fences)
}

func after(d time.Duration) { <-time.After(d) }

func TestNoCacheByDefault(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, d *testCache) {
		jwt := newJWT(orgA, "u", time.Time{})
		d.want(jwt, miss)
		d.want(jwt, miss)
		d.delete(jwt)
		d.want(jwt, miss)
		if err := d.Check(); err != nil {
			t.Error(err)
		}
	})
}

func TestTTLAndAge(t *testing.T) {
	bubble(t, Config{TTL: 10 * time.Second}, func(t *testing.T, d *testCache) {
		jwt := newJWT(orgA, "u", time.Time{})
		d.want(jwt, miss)
		d.want(jwt, hit(10))
		after(4 * time.Second)
		d.want(jwt, hit(6))
		result, _ := d.create(jwt)
		if result.Status.AgeSeconds() != "4" || result.Org != orgA {
			t.Errorf("age %s of org %s, want 4 of %s", result.Status.AgeSeconds(), result.Org, orgA)
		}
		after(6*time.Second - 1)
		d.want(jwt, hit(0))
		after(1)
		d.want(jwt, miss)
	})
}

// TestTTLStartsBeforeTheCall counts the time that Atlas takes, because the token may be as old as
// the call.
func TestTTLStartsBeforeTheCall(t *testing.T) {
	bubble(t, Config{TTL: 10 * time.Second}, func(t *testing.T, d *testCache) {
		jwt := newJWT(orgA, "u", time.Time{})
		_, err := d.Create(t.Context(), own(jwt), false, func(ctx context.Context) (Answer, error) {
			after(7 * time.Second)
			return d.world.ask(jwt)(ctx)
		})
		if err != nil {
			t.Fatal(err)
		}
		d.want(jwt, hit(3))
	})
}

func TestTTLEndsAtJWTExpiry(t *testing.T) {
	bubble(t, Config{TTL: 10 * time.Second, StaleIfError: time.Minute}, func(t *testing.T, d *testCache) {
		jwt := newJWT(orgA, "u", time.Now().Add(4*time.Second))
		d.want(jwt, miss)
		d.want(jwt, hit(4))
		after(4 * time.Second)
		d.want(jwt, miss)
		d.world.failing(statusError(atlas.OpCreate, 503))
		if _, err := d.create(jwt); err == nil {
			t.Error("a token was kept beyond the JWT's exp")
		}
		d.world.failing(nil)
		past := newJWT(orgB, "u", time.Now().Add(-time.Second))
		d.want(past, miss)
		d.want(past, miss)
		if n := d.readable(); n != 0 {
			t.Errorf("%d tokens are kept", n)
		}
	})
}

func TestStaleIfError(t *testing.T) {
	failures := map[string]error{
		"500":              statusError(atlas.OpCreate, 500),
		"503":              statusError(atlas.OpCreate, 503),
		"429":              statusError(atlas.OpCreate, 429),
		"unreachable":      kindError(atlas.OpCreate, atlas.KindUnreachable),
		"login":            kindError(atlas.OpLogIn, atlas.KindUnreachable),
		"TLS":              kindError(atlas.OpCreate, atlas.KindTLS),
		"timeout":          kindError(atlas.OpCreate, atlas.KindTimeout),
		"redirect":         kindError(atlas.OpCreate, atlas.KindRedirect),
		"invalid response": kindError(atlas.OpCreate, atlas.KindInvalidResponse),
		"time of the call": &atlas.Error{Op: atlas.OpCreate, Kind: atlas.KindCanceled, Err: context.DeadlineExceeded},
	}
	for name, failure := range failures {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{TTL: 10 * time.Second, StaleIfError: 20 * time.Second}, func(t *testing.T, d *testCache) {
				jwt := newJWT(orgA, "u", time.Time{})
				d.want(jwt, miss)
				after(10 * time.Second)
				d.world.failing(failure)
				d.want(jwt, stale)
				after(20*time.Second - 1)
				d.want(jwt, stale)
				after(defaultHoldOff) // for which Atlas is not asked after a 429
				if _, err := d.create(jwt); !errors.Is(err, failure) {
					t.Errorf("got %v, want Atlas's error", err)
				}
				if n := d.readable(); n != 0 {
					t.Errorf("%d tokens are kept", n)
				}
			})
		})
	}
}

// TestStaleIfAtlasHangs returns the stale token shortly before the caller's deadline. Without one,
// the caller waits until its deadline.
func TestStaleIfAtlasHangs(t *testing.T) {
	bubble(t, Config{TTL: time.Second, StaleIfError: time.Hour}, func(t *testing.T, d *testCache) {
		jwt, unknown := newJWT(orgA, "u", time.Time{}), newJWT(orgB, "u", time.Time{})
		d.want(jwt, miss)
		after(time.Minute)
		hang := func(ctx context.Context) (Answer, error) {
			<-ctx.Done()
			return Answer{}, &atlas.Error{Op: atlas.OpCreate, Kind: atlas.KindCanceled, Err: ctx.Err()}
		}
		create := func(cred atlas.JWT, fresh bool, timeout time.Duration) (Result, time.Duration, error) {
			start := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			result, err := d.Create(ctx, own(cred), fresh, hang)
			return result, time.Since(start), err
		}
		for _, timeout := range []time.Duration{100 * time.Millisecond, 2 * time.Second, 20 * time.Second} {
			result, took, err := create(jwt, false, timeout)
			if got := result.Status.String(); err != nil || got != stale {
				t.Errorf("with %v: %s, %v; want the stale token", timeout, got, err)
			}
			if took < timeout*3/4 || took >= timeout {
				t.Errorf("with %v: after %v, want shortly before", timeout, took)
			}
			for cred, fresh := range map[atlas.JWT]bool{unknown: false, jwt: true} {
				if _, took, err := create(cred, fresh, timeout); !errors.Is(err, context.DeadlineExceeded) || took != timeout {
					t.Errorf("with %v, fresh %v: %v after %v, want the deadline", timeout, fresh, err, took)
				}
			}
		}
	})
}

func TestNoStaleTokenAfterCallerError(t *testing.T) {
	for name, failure := range map[string]error{
		"400":                statusError(atlas.OpCreate, 400),
		"404":                statusError(atlas.OpCreate, 404),
		"caller gave up":     &atlas.Error{Op: atlas.OpCreate, Kind: atlas.KindCanceled, Err: context.Canceled},
		"invalid credential": kindError(atlas.OpCreate, atlas.KindInvalidCredential),
		"anything else":      errors.New("else"),
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{TTL: 10 * time.Second, StaleIfError: time.Hour}, func(t *testing.T, d *testCache) {
				jwt := newJWT(orgA, "u", time.Time{})
				d.want(jwt, miss)
				after(time.Minute)
				d.world.failing(failure)
				if _, err := d.create(jwt); !errors.Is(err, failure) {
					t.Errorf("got %v, want Atlas's error", err)
				}
			})
		})
	}
}

func TestRefusedCredentialIsRemoved(t *testing.T) {
	for name, refusal := range map[string]error{
		"401":     statusError(atlas.OpCreate, 401),
		"403":     statusError(atlas.OpCreate, 403),
		"service": &atlas.CredentialError{Err: statusError(atlas.OpLogIn, 400)},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{TTL: time.Hour, StaleIfError: time.Hour}, func(t *testing.T, d *testCache) {
				jwt, other := newJWT(orgA, "u", time.Time{}), newJWT(orgA, "other", time.Time{})
				d.want(jwt, miss)
				d.want(other, miss)
				d.world.failing(refusal)
				if _, err := d.Create(t.Context(), own(jwt), true, d.world.ask(jwt)); !errors.Is(err, refusal) {
					t.Errorf("got %v, want the refusal", err)
				}
				outage := statusError(atlas.OpCreate, 503)
				d.world.failing(outage)
				if _, err := d.create(jwt); !errors.Is(err, outage) {
					t.Errorf("after a refusal: %v, want Atlas's error", err)
				}
				d.want(other, hit(3600))
			})
		})
	}
}

func TestRefusedDeleteRemovesCredential(t *testing.T) {
	bubble(t, Config{TTL: time.Hour}, func(t *testing.T, d *testCache) {
		cred := profile("secret", newJWT(orgA, "u", time.Time{}))
		jwt := newJWT(orgA, "u", time.Time{})
		if _, err := d.Create(t.Context(), cred, false, d.world.ask(jwt)); err != nil {
			t.Fatal(err)
		}
		refusal := statusError(atlas.OpDelete, 401)
		err := d.Delete(t.Context(), cred, func(context.Context) (atlas.JWT, error) { return "", refusal })
		if !errors.Is(err, refusal) || d.readable() != 0 {
			t.Errorf("%v, and %d tokens are kept; want a refusal and none", err, d.readable())
		}
	})
}

// TestProfileChangesOrg does not return a token of the previous org.
func TestProfileChangesOrg(t *testing.T) {
	bubble(t, Config{TTL: time.Hour}, func(t *testing.T, d *testCache) {
		a, b := newJWT(orgA, "u", time.Time{}), newJWT(orgB, "u", time.Time{})
		for _, jwt := range []atlas.JWT{a, b} {
			result, err := d.Create(t.Context(), profile("secret", jwt), false, d.world.ask(jwt))
			if err != nil || result.Token != d.world.token(jwt.UnverifiedClaims().OrgID) {
				t.Errorf("got %q, %v", string(result.Token), err)
			}
		}
		if n := d.readable(); n != 2 {
			t.Errorf("%d tokens are kept, want one for each org", n)
		}
	})
}

// TestKeyHasProfileAndOrg distinguishes identities that share a secret, and refuses credentials
// without one, which would all have one key.
func TestKeyHasProfileAndOrg(t *testing.T) {
	bubble(t, Config{TTL: time.Hour}, func(t *testing.T, d *testCache) {
		seen := map[key]bool{}
		for _, name := range []string{"acme", "other"} {
			for _, org := range []string{orgA, orgB} {
				cred := atlas.Credential{JWT: newJWT(org, "u", time.Time{}), Profile: name, Secret: "secret"}
				seen[d.key(cred)] = true
				cred.Secret = ""
				if _, err := d.Cache.Create(t.Context(), cred, false); !errors.Is(err, errNoCredential) {
					t.Errorf("create without a secret: %v", err)
				}
				if _, err := d.Cache.Delete(t.Context(), cred); !errors.Is(err, errNoCredential) {
					t.Errorf("delete without a secret: %v", err)
				}
			}
		}
		if len(seen) != 4 {
			t.Errorf("%d keys for 4 identities", len(seen))
		}
	})
}

func TestNoCache(t *testing.T) {
	bubble(t, Config{TTL: time.Minute, StaleIfError: time.Hour}, func(t *testing.T, d *testCache) {
		jwt := newJWT(orgA, "u", time.Time{})
		d.want(jwt, miss)
		after(30 * time.Second)
		result, err := d.Create(t.Context(), own(jwt), true, d.world.ask(jwt))
		if got := result.Status.String(); err != nil || got != "tokend; fwd=request" {
			t.Errorf("%s, %v; want fwd=request", got, err)
		}
		d.want(jwt, hit(60)) // filled anew
		d.world.failing(statusError(atlas.OpCreate, 503))
		if _, err := d.Create(t.Context(), own(jwt), true, d.world.ask(jwt)); err == nil {
			t.Error("no-cache was answered from memory")
		}
		d.want(jwt, hit(60)) // a failure forgets nothing
	})
}

func TestOldestTokenIsEvicted(t *testing.T) {
	bubble(t, Config{TTL: time.Hour}, func(t *testing.T, d *testCache) {
		d.memory.maxTokens = 3
		var jwts []atlas.JWT
		for i := range 4 {
			jwts = append(jwts, newJWT(fmt.Sprintf("org %d", i), "u", time.Time{}))
			d.want(jwts[i], miss)
		}
		if n := d.readable(); n != 3 {
			t.Errorf("%d tokens are kept, want 3", n)
		}
		for _, jwt := range jwts[1:] {
			d.want(jwt, hit(3600))
		}
		d.want(jwts[0], miss)
		d.want(jwts[1], miss)
	})
}

// TestSweepRemovesExpiredTokens wants expired tokens to be removed within half of their lifetime.
func TestSweepRemovesExpiredTokens(t *testing.T) {
	bubble(t, Config{TTL: time.Hour, StaleIfError: time.Hour}, func(t *testing.T, d *testCache) {
		d.want(newJWT(orgA, "u", time.Time{}), miss)
		d.want(newJWT(orgB, "u", time.Now().Add(time.Minute)), miss)
		if n := d.held(); n != 2 {
			t.Fatalf("%d tokens are kept, want 2", n)
		}
		after(time.Hour)
		if n := d.held(); n != 1 { // not even behind one that lives longer
			t.Errorf("%d tokens are kept, want 1", n)
		}
		after(2 * time.Hour)
		if n := d.held(); n != 0 || d.fences() != 0 {
			t.Errorf("%d tokens and %d fences are kept, want none", n, d.fences())
		}
		d.want(newJWT(orgA, "u", time.Time{}), miss)
		d.want(newJWT(orgA, "u", time.Time{}), hit(3600))
	})
}

func TestCloseRemovesTokens(t *testing.T) {
	bubble(t, Config{TTL: time.Hour}, func(t *testing.T, d *testCache) {
		d.want(newJWT(orgA, "u", time.Time{}), miss)
		d.Close()
		if n := d.held(); n != 0 {
			t.Errorf("%d tokens are kept", n)
		}
	})
}

// TestSweepIsBounded bounds a sweep, because it holds the lock. The next sweep removes the rest.
func TestSweepIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const tokens = maxSweep + 100
		m := newMemoryStore(Config{TTL: 2 * time.Second})
		sweeper := func() *time.Timer {
			m.mu.Lock()
			defer m.mu.Unlock()
			return m.sweeper
		}
		for i := range tokens {
			r := request{claims: atlas.Claims{OrgID: fmt.Sprint("org ", i)}, key: key{byte(i), byte(i >> 8)}}
			_, v := m.Get(t.Context(), r)
			before := sweeper()
			m.Put(t.Context(), v, r, "token", unlimited)
			m.Release(v)
			if before != nil && sweeper() != before {
				t.Fatal("a second timer runs")
			}
		}
		for _, want := range []int{tokens, 100, 0} {
			after(time.Second)
			synctest.Wait()
			m.mu.Lock()
			if len(m.tokens) != want || m.oldest.Len() != want || len(m.fences) != want {
				t.Errorf("%d tokens, %d in order, and %d fences are left, want %d", len(m.tokens), m.oldest.Len(), len(m.fences), want)
			}
			m.mu.Unlock()
		}
		if sweeper() != nil {
			t.Error("the timer runs on, and nothing is cached")
		}
	})
}

// TestExpiredAnswersAreNotStored does not store a token that cannot be read any more.
func TestExpiredAnswersAreNotStored(t *testing.T) {
	m := newMemoryStore(Config{TTL: time.Hour})
	defer m.Close()
	r := request{claims: atlas.Claims{OrgID: orgA}, key: key{1}}
	for _, life := range []time.Duration{expired, 0} {
		_, v := m.Get(t.Context(), r)
		if m.Put(t.Context(), v, r, "token", life); len(m.tokens) != 0 {
			t.Errorf("a token that has %v is kept", life)
		}
	}
}
