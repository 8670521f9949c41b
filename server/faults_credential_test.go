package server_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

// clock is time that stands still until a test moves it.
type clock struct {
	mu     sync.Mutex
	now    time.Time
	timers []*timer // guarded by mu
}

type timer struct {
	at time.Time
	f  func()
}

// newClock starts with a whole second, as exp is one.
func newClock() *clock { return &clock{now: time.Now().Truncate(time.Second)} }

// serviceClock is the clock as the service has it; atlas's is off by skew.
func (c *clock) serviceClock() atlas.Clock { return atlas.Clock{Now: c.Now, AfterFunc: c.afterFunc} }

func (c *clock) atlasClock(skew time.Duration) func() time.Time {
	return func() time.Time { return c.Now().Add(skew) }
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) afterFunc(d time.Duration, f func()) (stop func() bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	added := &timer{c.now.Add(d), f}
	c.timers = append(c.timers, added)
	return func() bool { return c.remove(added) }
}

func (c *clock) remove(gone *timer) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, t := range c.timers {
		if t == gone {
			c.timers = append(c.timers[:i:i], c.timers[i+1:]...)
			return true
		}
	}
	return false
}

// next is the time until the next timer, 0 if there is none.
func (c *clock) next() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.timers) == 0 {
		return 0
	}
	first := c.timers[0].at
	for _, t := range c.timers {
		if t.at.Before(first) {
			first = t.at
		}
	}
	return first.Sub(c.now)
}

// advance moves time and runs what is due.
func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	c.now = c.now.Add(d)
	var due []*timer
	for _, t := range c.timers {
		if !t.at.After(c.now) {
			due = append(due, t)
		}
	}
	c.mu.Unlock()
	for _, t := range due {
		if c.remove(t) {
			go t.f()
		}
	}
}

// advanceLate moves time while every timer is late, as on a machine that was suspended.
func (c *clock) advanceLate(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	for _, t := range c.timers {
		t.at = t.at.Add(d)
	}
}

// calls are the emulator's calls of one operation since the last time.
type calls struct {
	em   *emulator.Emulator
	seen map[emulator.Operation]int
}

func (c *calls) check(t *testing.T, when string, on emulator.Operation, want int) {
	t.Helper()
	n := c.em.Calls(on)
	if got := n - c.seen[on]; got != want {
		t.Errorf("%s: %d calls of %s, want %d", when, got, on, want)
	}
	c.seen[on] = n
}

func (s *identityService) counted() *calls {
	return &calls{s.atlas, map[emulator.Operation]int{}}
}

// identityMatrix runs test for each transport, with a service and an Atlas of its own.
func identityMatrix(t *testing.T, skew, lifetime time.Duration, test func(t *testing.T, s *identityService, now *clock, c caller)) {
	t.Helper()
	for _, transport := range []string{"gRPC", "REST"} {
		t.Run(transport, func(t *testing.T) {
			now := newClock()
			s := startIdentityAt(t, "", now.serviceClock(), emulator.Config{Now: now.atlasClock(skew), JWTLifetime: lifetime})
			test(t, s, now, s.callers(t)[transport])
		})
	}
}

// TestFault29CallerExpired: whether a caller's JWT has expired, Atlas says, and not the exp in it.
func TestFault29CallerExpired(t *testing.T) {
	rejected := want{code: codes.Unauthenticated, http: 401, reason: "CREDENTIAL_REJECTED"}
	for name, test := range map[string]struct {
		skew             time.Duration // of Atlas's clock
		lifetime         time.Duration // by Atlas's clock
		created, deleted want
	}{
		"expired":                    {0, -time.Minute, rejected, rejected},
		"expired by Atlas's clock":   {time.Hour, -time.Minute, rejected, rejected}, // and not by ours
		"expired by our clock alone": {-time.Hour, time.Minute, wantCreated, wantDeleted},
	} {
		t.Run(name, func(t *testing.T) {
			em, err := emulator.Start(emulator.Config{Now: func() time.Time { return time.Now().Add(test.skew) }})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(em.Close)
			s := startServiceWith(t, mutualTLS, em)
			for transport, c := range s.callers(t) {
				t.Run(transport, func(t *testing.T) {
					jwt := em.Org(0).MintJWT(emulator.JWT{Lifetime: test.lifetime})
					before := em.Calls(emulator.Any)
					test.created.check(t, c.call(testContext(t), create, "authorization", "JWT "+jwt))
					test.deleted.check(t, c.call(testContext(t), remove, "authorization", "JWT "+jwt))
					if n := em.Calls(emulator.Any) - before; n != 2 {
						t.Errorf("Atlas was called %d times for 2 calls", n)
					}
				})
			}
		})
	}
}

// TestFault31RefreshRefused: a refused refresh leads to one login, and nobody's call fails meanwhile.
func TestFault31RefreshRefused(t *testing.T) {
	identityMatrix(t, 0, time.Hour, func(t *testing.T, s *identityService, now *clock, c caller) {
		count := s.counted()
		wantCreated.check(t, c.call(testContext(t), create))
		count.check(t, "at first", emulator.Login, 1)

		defer s.atlas.Inject(emulator.Fault{On: emulator.Refresh, Status: 400, Body: `{"non_field_errors": ["planted"]}`})()
		gate := s.atlas.Hold(emulator.Refresh)
		defer gate.Release()
		now.advance(now.next())
		if err := gate.Wait(testContext(t), 1); err != nil {
			t.Fatal(err)
		}
		wantCreated.check(t, c.call(testContext(t), create)) // with the JWT that is being refreshed
		gate.Release()
		eventually(t, func() bool { return now.next() > 0 }, "the renewal does not end")
		count.check(t, "refused", emulator.Refresh, 1)
		count.check(t, "refused", emulator.Login, 1)
		creates := s.atlas.Calls(emulator.Create)
		for range 5 {
			wantCreated.check(t, c.call(testContext(t), create))
		}
		wantDeleted.check(t, c.call(testContext(t), remove))
		count.check(t, "after it", emulator.Login, 0)
		if n := s.atlas.Calls(emulator.Create) - creates; n != 5 {
			t.Errorf("Atlas saw %d creates, want 5: the new JWT works at once", n)
		}
		if code, body := s.get(t, "/readyz"); code != 200 || body != "ready\n" {
			t.Errorf("/readyz: %d %q", code, body)
		}
	})
}

// TestFault31LoginRefusedToo: then the JWT that is there serves as long as Atlas takes it, and after that calls are told
// when to come back. Logins stay 30 s apart, lest they lock the account.
func TestFault31LoginRefusedToo(t *testing.T) {
	identityMatrix(t, 0, time.Hour, func(t *testing.T, s *identityService, now *clock, c caller) {
		count := s.counted()
		wantCreated.check(t, c.call(testContext(t), create))
		count.check(t, "at first", emulator.Login, 1)

		accept := s.atlas.Inject(emulator.Fault{On: emulator.Login, Status: 400, Body: `{"non_field_errors": ["planted"]}`})
		defer s.atlas.Inject(emulator.Fault{On: emulator.Refresh, Status: 400, Body: `{"non_field_errors": ["planted"]}`})()
		now.advance(now.next())
		eventually(t, func() bool { return now.next() > 0 }, "the renewal does not end")
		count.check(t, "refused", emulator.Refresh, 1)
		count.check(t, "refused", emulator.Login, 1)
		if wait := now.next(); wait < 30*time.Second || wait > 36*time.Second {
			t.Errorf("the next try is in %v, want 30 to 36 s", wait)
		}
		wantCreated.check(t, c.call(testContext(t), create))
		code, body := s.get(t, "/readyz") // the JWT still works
		if code != 200 || !strings.Contains(body, "profile acme: Atlas refuses the service's own credential") || strings.Contains(body, "planted") {
			t.Errorf("/readyz: %d %q, want it to say why", code, body)
		}

		s.atlas.Org(0).RevokeJWTs()
		wantServiceRejected.checkRetry(t, c.call(testContext(t), create), 30*time.Second, 36*time.Second)
		wantServiceRejected.checkRetry(t, c.call(testContext(t), remove), 30*time.Second, 36*time.Second)
		now.advance(29 * time.Second)
		wantServiceRejected.checkRetry(t, c.call(testContext(t), create), time.Second, 7*time.Second)
		count.check(t, "within 30 s", emulator.Login, 0)

		now.advance(7 * time.Second)
		wantServiceRejected.checkRetry(t, c.call(testContext(t), create), 60*time.Second, 72*time.Second)
		count.check(t, "after 36 s", emulator.Login, 1)
		accept()
		now.advance(72 * time.Second)
		wantCreated.check(t, c.call(testContext(t), create))
		count.check(t, "once Atlas takes it again", emulator.Login, 1)
		eventually(t, func() bool { code, body := s.get(t, "/readyz"); return code == 200 && body == "ready\n" }, "/readyz does not become ready again")
	})
}

// TestFault32Clock: our clock is off by five minutes. A JWT says when Atlas issued it, so we know how long it lives all the same:
// we refresh at about half of that, and log in again once it is over.
func TestFault32Clock(t *testing.T) {
	const lifetime = 15 * time.Minute // by Atlas's clock
	for _, skew := range []time.Duration{-5 * time.Minute, 5 * time.Minute} {
		t.Run(fmt.Sprintf("Atlas is %v ahead", skew), func(t *testing.T) {
			identityMatrix(t, skew, lifetime, func(t *testing.T, s *identityService, now *clock, c caller) {
				count := s.counted()
				wantCreated.check(t, c.call(testContext(t), create))
				count.check(t, "at first", emulator.Login, 1)
				if wait := now.next(); wait < lifetime*44/100 || wait > lifetime*56/100 { // JWTs tell the time to the second
					t.Errorf("the refresh is in %v, the JWT lives for %v", wait, lifetime)
				}
				now.advance(now.next())
				eventually(t, func() bool { return now.next() > 0 }, "the refresh does not end")
				count.check(t, "in time", emulator.Refresh, 1)
				count.check(t, "in time", emulator.Login, 0)
				count.seen[emulator.Create] = s.atlas.Calls(emulator.Create)
				wantCreated.check(t, c.call(testContext(t), create))
				count.check(t, "in time", emulator.Create, 1)

				now.advanceLate(lifetime + time.Minute) // no refresh, and it has expired by Atlas's clock
				wantCreated.check(t, c.call(testContext(t), create))
				count.check(t, "expired", emulator.Login, 1)
				count.check(t, "expired", emulator.Create, 1)
			})
		})
	}
	t.Run("a life shorter than the difference", func(t *testing.T) {
		// By our clock each JWT is over before it is issued. That is no reason to log in for each call, nor to refresh in a hurry.
		identityMatrix(t, -5*time.Minute, 4*time.Minute, func(t *testing.T, s *identityService, now *clock, c caller) {
			count := s.counted()
			for range 20 {
				wantCreated.check(t, c.call(testContext(t), create))
			}
			count.check(t, "in 20 calls", emulator.Login, 1)
			count.check(t, "in 20 calls", emulator.Create, 20)
			if wait := now.next(); wait < 100*time.Second || wait > 140*time.Second {
				t.Errorf("the refresh is in %v, want about two minutes", wait)
			}
		})
	})
}
