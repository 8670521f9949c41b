package faults

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

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

func counted(s *testutil.IdentityService) *calls {
	return &calls{s.Atlas, map[emulator.Operation]int{}}
}

// identityMatrix runs test for each transport, with a service and an Atlas of its own.
func identityMatrix(t *testing.T, skew, lifetime time.Duration, test func(t *testing.T, s *testutil.IdentityService, now *testutil.Clock, c testutil.Caller)) {
	t.Helper()
	for _, transport := range []string{"gRPC", "REST"} {
		t.Run(transport, func(t *testing.T) {
			now := testutil.NewClock()
			s := testutil.StartIdentityAt(t, "", now.TokenClock(), emulator.Config{Now: now.AtlasNow(skew), JWTLifetime: lifetime})
			test(t, s, now, s.Callers(t)[transport])
		})
	}
}

// TestFault29CallerExpired: whether a caller's JWT has expired, Atlas says, and not the exp in it.
func TestFault29CallerExpired(t *testing.T) {
	t.Parallel()
	rejected := testutil.Want{Code: codes.Unauthenticated, HTTP: 401, Reason: "CREDENTIAL_REJECTED"}
	for name, test := range map[string]struct {
		skew             time.Duration // of Atlas's clock
		lifetime         time.Duration // by Atlas's clock
		created, deleted testutil.Want
	}{
		"expired":                    {0, -time.Minute, rejected, rejected},
		"expired by Atlas's clock":   {time.Hour, -time.Minute, rejected, rejected}, // and not by ours
		"expired by our clock alone": {-time.Hour, time.Minute, testutil.WantCreated, testutil.WantDeleted},
	} {
		t.Run(name, func(t *testing.T) {
			em, err := emulator.Start(emulator.Config{Now: func() time.Time { return time.Now().Add(test.skew) }})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(em.Close)
			s := testutil.StartWith(t, testutil.MutualTLS, em)
			for transport, c := range s.Callers(t) {
				t.Run(transport, func(t *testing.T) {
					jwt := em.Org(0).MintJWT(emulator.JWT{Lifetime: test.lifetime})
					before := em.Calls(emulator.Any)
					test.created.Check(t, c.Call(testutil.Context(t), testutil.Create, "authorization", "JWT "+jwt))
					test.deleted.Check(t, c.Call(testutil.Context(t), testutil.Delete, "authorization", "JWT "+jwt))
					if n := em.Calls(emulator.Any) - before; n != 2 {
						t.Errorf("Atlas was called %d times for 2 calls", n)
					}
				})
			}
		})
	}
}

// TestFault31RefreshRefused: a refused refresh leads to one login, and nobody's call fails
// meanwhile.
func TestFault31RefreshRefused(t *testing.T) {
	t.Parallel()
	identityMatrix(t, 0, time.Hour, func(t *testing.T, s *testutil.IdentityService, now *testutil.Clock, c testutil.Caller) {
		count := counted(s)
		testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create))
		count.check(t, "at first", emulator.Login, 1)

		defer s.Atlas.Inject(emulator.Fault{On: emulator.Refresh, Status: 400, Body: `{"non_field_errors": ["planted"]}`})()
		gate := s.Atlas.Hold(emulator.Refresh)
		defer gate.Release()
		now.Advance(now.Next())
		if err := gate.Wait(testutil.Context(t), 1); err != nil {
			t.Fatal(err)
		}
		testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create)) // with the JWT that is being refreshed
		gate.Release()
		testutil.Eventually(t, func() bool { return now.Next() > 0 }, "the renewal does not end")
		count.check(t, "refused", emulator.Refresh, 1)
		count.check(t, "refused", emulator.Login, 1)
		creates := s.Atlas.Calls(emulator.Create)
		for range 5 {
			testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create))
		}
		testutil.WantDeleted.Check(t, c.Call(testutil.Context(t), testutil.Delete))
		count.check(t, "after it", emulator.Login, 0)
		if n := s.Atlas.Calls(emulator.Create) - creates; n != 5 {
			t.Errorf("Atlas saw %d creates, want 5: the new JWT works at once", n)
		}
		if code, body := s.Get(t, "/readyz"); code != 200 || body != "ready\n" {
			t.Errorf("/readyz: %d %q", code, body)
		}
	})
}

// TestFault31LoginRefusedToo: then the JWT that is there serves as long as Atlas takes it, and
// after that calls are told when to come back. Logins stay 30 s apart, lest they lock the account.
func TestFault31LoginRefusedToo(t *testing.T) {
	t.Parallel()
	identityMatrix(t, 0, time.Hour, func(t *testing.T, s *testutil.IdentityService, now *testutil.Clock, c testutil.Caller) {
		count := counted(s)
		testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create))
		count.check(t, "at first", emulator.Login, 1)

		accept := s.Atlas.Inject(emulator.Fault{On: emulator.Login, Status: 400, Body: `{"non_field_errors": ["planted"]}`})
		defer s.Atlas.Inject(emulator.Fault{On: emulator.Refresh, Status: 400, Body: `{"non_field_errors": ["planted"]}`})()
		now.Advance(now.Next())
		testutil.Eventually(t, func() bool { return now.Next() > 0 }, "the renewal does not end")
		count.check(t, "refused", emulator.Refresh, 1)
		count.check(t, "refused", emulator.Login, 1)
		if wait := now.Next(); wait < 30*time.Second || wait > 36*time.Second {
			t.Errorf("the next try is in %v, want 30 to 36 s", wait)
		}
		testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create))
		code, body := s.Get(t, "/readyz") // the JWT still works
		if code != 200 || !strings.Contains(body, "profile acme: Atlas refuses the service's own credential") || strings.Contains(body, "planted") {
			t.Errorf("/readyz: %d %q, want it to say why", code, body)
		}

		s.Atlas.Org(0).RevokeJWTs()
		testutil.WantServiceRejected.CheckRetry(t, c.Call(testutil.Context(t), testutil.Create), 30*time.Second, 36*time.Second)
		testutil.WantServiceRejected.CheckRetry(t, c.Call(testutil.Context(t), testutil.Delete), 30*time.Second, 36*time.Second)
		now.Advance(29 * time.Second)
		testutil.WantServiceRejected.CheckRetry(t, c.Call(testutil.Context(t), testutil.Create), time.Second, 7*time.Second)
		count.check(t, "within 30 s", emulator.Login, 0)

		now.Advance(7 * time.Second)
		testutil.WantServiceRejected.CheckRetry(t, c.Call(testutil.Context(t), testutil.Create), 60*time.Second, 72*time.Second)
		count.check(t, "after 36 s", emulator.Login, 1)
		accept()
		now.Advance(72 * time.Second)
		testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create))
		count.check(t, "once Atlas takes it again", emulator.Login, 1)
		testutil.Eventually(t, func() bool { code, body := s.Get(t, "/readyz"); return code == 200 && body == "ready\n" }, "/readyz does not become ready again")
	})
}

// TestFault32Clock: our clock is off by five minutes. A JWT says when Atlas issued it, so we know
// how long it lives all the same: we refresh at about half of that, and log in again once it is
// over.
func TestFault32Clock(t *testing.T) {
	t.Parallel()
	const lifetime = 15 * time.Minute // by Atlas's clock
	for _, skew := range []time.Duration{-5 * time.Minute, 5 * time.Minute} {
		t.Run(fmt.Sprintf("Atlas is %v ahead", skew), func(t *testing.T) {
			identityMatrix(t, skew, lifetime, func(t *testing.T, s *testutil.IdentityService, now *testutil.Clock, c testutil.Caller) {
				count := counted(s)
				testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create))
				count.check(t, "at first", emulator.Login, 1)
				if wait := now.Next(); wait < lifetime*44/100 || wait > lifetime*56/100 { // JWTs tell the time to the second
					t.Errorf("the refresh is in %v, the JWT lives for %v", wait, lifetime)
				}
				now.Advance(now.Next())
				testutil.Eventually(t, func() bool { return now.Next() > 0 }, "the refresh does not end")
				count.check(t, "in time", emulator.Refresh, 1)
				count.check(t, "in time", emulator.Login, 0)
				count.seen[emulator.Create] = s.Atlas.Calls(emulator.Create)
				testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create))
				count.check(t, "in time", emulator.Create, 1)

				now.AdvanceLate(lifetime + time.Minute) // no refresh, and it has expired by Atlas's clock
				testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create))
				count.check(t, "expired", emulator.Login, 1)
				count.check(t, "expired", emulator.Create, 1)
			})
		})
	}
	t.Run("a life shorter than the difference", func(t *testing.T) {
		// By our clock each JWT is over before it is issued. That is no reason to log in for each
		// call, nor to refresh in a hurry.
		identityMatrix(t, -5*time.Minute, 4*time.Minute, func(t *testing.T, s *testutil.IdentityService, now *testutil.Clock, c testutil.Caller) {
			count := counted(s)
			for range 20 {
				testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create))
			}
			count.check(t, "in 20 calls", emulator.Login, 1)
			count.check(t, "in 20 calls", emulator.Create, 20)
			if wait := now.Next(); wait < 100*time.Second || wait > 140*time.Second {
				t.Errorf("the refresh is in %v, want about two minutes", wait)
			}
		})
	})
}
