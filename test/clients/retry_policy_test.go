package clients

import (
	"context"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // what makes a client go by healthCheckConfig
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// recommendedConfig is the service config that callers are given.
var recommendedConfig = testutil.Path("deploy/service-config.json")

// repeatEverything is the policy of a caller that tries whatever fails again, as often as gRPC lets
// it.
const repeatEverything = `{"methodConfig": [{"name": [{}], "retryPolicy": {
	"maxAttempts": 5, "initialBackoff": "0.001s", "maxBackoff": "0.001s", "backoffMultiplier": 1,
	"retryableStatusCodes": ["CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
		"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL",
		"UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"]}}]}`

// policyCaller is a client of grpc-go with this service config.
func policyCaller(t *testing.T, config string, replicas ...*testutil.Service) testutil.GRPCCaller {
	t.Helper()
	names := manual.NewBuilderWithScheme("replicas")
	var found resolver.State
	for _, s := range replicas {
		found.Addresses = append(found.Addresses, resolver.Address{Addr: s.GRPCAddr().String()})
	}
	names.InitialState(found)
	conn, err := grpc.NewClient("replicas:///tokend", grpc.WithResolvers(names), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultServiceConfig(config),
		replicas[0].DialOption())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return testutil.NewGRPCCaller(conn)
}

// recommendedCaller goes by the service config that callers are given.
func recommendedCaller(t *testing.T, replicas ...*testutil.Service) testutil.GRPCCaller {
	t.Helper()
	config, err := os.ReadFile(recommendedConfig)
	if err != nil {
		t.Fatal(err)
	}
	return policyCaller(t, string(config), replicas...)
}

// unsent is how a delete fails that has not reached Atlas, and may be repeated after so long.
func unsent(d time.Duration) error {
	return &atlas.Error{Op: atlas.OpDelete, Kind: atlas.KindUnreachable, RetryAfter: d}
}

// unavailable is Atlas failing for so long.
func unavailable(d time.Duration) error {
	return &atlas.Error{Op: atlas.OpCreate, Kind: atlas.KindStatus, StatusCode: http.StatusServiceUnavailable, Sent: true, RetryAfter: d}
}

// TestRecommendedPolicy: what callers are told to configure does what they are told that it does.
func TestRecommendedPolicy(t *testing.T) {
	t.Parallel()
	s, d := testutil.StartDoor(t)
	t.Run("a create is tried again, after the pushback", func(t *testing.T) {
		const pushback = 400 * time.Millisecond // longer than the policy's own first wait can be
		d.Expect(unavailable(pushback))
		testutil.WantCreated.Check(t, recommendedCaller(t, s).Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
		at := d.Attempts()
		if len(at) != 2 {
			t.Fatalf("%d attempts, want 2", len(at))
		}
		if waited := at[1].Sub(at[0]); waited < pushback {
			t.Errorf("the second attempt came after %v, want %v at least", waited, pushback)
		}
	})
	t.Run("one failure of Atlas does not reach the caller", func(t *testing.T) {
		before := s.Atlas.Calls(emulator.Create)
		s.Atlas.Inject(emulator.Fault{On: emulator.Create, Times: 1, Status: http.StatusServiceUnavailable})
		testutil.WantCreated.Check(t, recommendedCaller(t, s).Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
		if calls := s.Atlas.Calls(emulator.Create) - before; calls != 2 {
			t.Errorf("Atlas was called %d times, want 2", calls)
		}
	})
	t.Run("three attempts and no more", func(t *testing.T) {
		d.Expect(slices.Repeat([]error{unavailable(time.Millisecond)}, 5)...)
		w := testutil.Want{Code: codes.Unavailable, HTTP: 503, Reason: "ATLAS_UNAVAILABLE", Retry: time.Millisecond}
		w.Check(t, recommendedCaller(t, s).Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
		if n := len(d.Attempts()); n != 3 {
			t.Errorf("%d attempts, want 3", n)
		}
	})
	t.Run("a delete is not tried again", func(t *testing.T) {
		// Not even one that never reached Atlas, of which the service itself would say that it may
		// be.
		d.Expect(unsent(time.Second))
		testutil.WantUnreachable.Check(t, recommendedCaller(t, s).Call(testutil.Context(t), testutil.Delete, testutil.Credential(s.Atlas)...))
		if n := len(d.Attempts()); n != 1 {
			t.Errorf("%d attempts, want 1", n)
		}
	})
}

// TestRecommendedPolicyGoesByHealth: calls go to all replicas, and leave one that drains while it
// would still answer them.
func TestRecommendedPolicyGoesByHealth(t *testing.T) {
	testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
		atLeaving, atStaying := &testutil.Door{}, &testutil.Door{}
		leaving := v.Start(t, testutil.Plaintext, atLeaving.Guard(t), func(c *server.Config, _ *atlas.Config) { c.DrainDelay = 15 * time.Second })
		staying := v.Start(t, testutil.Plaintext, atStaying.Guard(t))
		c := recommendedCaller(t, leaving, staying)
		call := func() {
			testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, "authorization", "JWT a.b.c"))
		}
		for _, s := range []*testutil.Service{leaving, staying} {
			s.Atlas.Inject(emulator.Fault{Status: http.StatusCreated, Body: `{"token": "t"}`}) // for whichever JWT
		}
		testutil.Eventually(t, func() bool {
			call()
			return len(atLeaving.Attempts()) > 0 && len(atStaying.Attempts()) > 0
		}, "one of the replicas gets no call")

		go func() { _ = leaving.Stop() }() // awaited, and looked at, when the test ends
		testutil.Eventually(t, func() bool {
			atLeaving.Expect()
			for range 10 {
				call()
			}
			return len(atLeaving.Attempts()) == 0
		}, "the replica that drains still gets calls")
		testutil.WantCreated.Check(t, leaving.GRPCCaller(t).Call(testutil.Context(t), testutil.Create, "authorization", "JWT a.b.c"))
	})
}

// TestDeleteIsNotRepeated: not even by a caller whose own policy says to repeat everything,
// whatever Atlas did with it.
func TestDeleteIsNotRepeated(t *testing.T) {
	t.Parallel()
	s, d := testutil.StartDoor(t, func(_ *server.Config, a *atlas.Config) { a.Timeout = 300 * time.Millisecond })
	c := policyCaller(t, repeatEverything, s)
	faults := append(testutil.AtlasFaults(),
		testutil.FaultCase{Name: "04 slow answer", Fault: emulator.Fault{Delay: time.Hour}},
		testutil.FaultCase{Name: "04 slow answer, done", Fault: emulator.Fault{Delay: time.Hour, AfterEffect: true}},
		testutil.FaultCase{Name: "06 redirect", Fault: emulator.Fault{Status: http.StatusTemporaryRedirect, Header: http.Header{"Location": {"/v1/ephemeral-token"}}}},
		testutil.FaultCase{Name: "02 connection closed", Fault: emulator.Fault{Drop: emulator.CloseConnection}},
		testutil.FaultCase{Name: "23 stream reset", Fault: emulator.Fault{Drop: emulator.AbortStream}},
		testutil.FaultCase{Name: "02 reset, done", Fault: emulator.Fault{Drop: emulator.ResetConnection, AfterEffect: true}},
	)
	for _, tc := range faults {
		if tc.Delete.Retry > 0 {
			continue // Atlas says that it has not done it, and when it may be asked again: see below
		}
		t.Run(tc.Name, func(t *testing.T) {
			defer s.Atlas.Inject(tc.Fault)()
			before := s.Atlas.Calls(emulator.Delete)
			d.Expect()
			c.Call(testutil.Context(t), testutil.Delete, testutil.Credential(s.Atlas)...)
			if calls, attempts := s.Atlas.Calls(emulator.Delete)-before, len(d.Attempts()); calls != 1 || attempts != 1 {
				t.Errorf("%d attempts, and Atlas got %d deletes: want 1 of each", attempts, calls)
			}
		})
	}
	t.Run("12 throttled", func(t *testing.T) {
		s.Atlas.Inject(emulator.Fault{On: emulator.Delete, Times: 1, Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"1"}}})
		d.Expect()
		testutil.WantDeleted.Check(t, c.Call(testutil.Context(t), testutil.Delete, testutil.Credential(s.Atlas)...))
		if at := d.Attempts(); len(at) != 2 || at[1].Sub(at[0]) < time.Second {
			t.Errorf("attempts at %v: want two, a second apart", at)
		}
	})
	t.Run("01 never sent", func(t *testing.T) {
		before := s.Atlas.Calls(emulator.Delete)
		d.Expect(unsent(time.Millisecond), unsent(time.Millisecond))
		testutil.WantDeleted.Check(t, c.Call(testutil.Context(t), testutil.Delete, testutil.Credential(s.Atlas)...))
		if calls, attempts := s.Atlas.Calls(emulator.Delete)-before, len(d.Attempts()); calls != 1 || attempts != 3 {
			t.Errorf("%d attempts, and Atlas got %d deletes: want 3 and 1", attempts, calls)
		}
	})
	t.Run("copies may live on", func(t *testing.T) {
		d.Expect(slices.Repeat([]error{&tokencache.UnsettledError{Err: context.DeadlineExceeded}}, 5)...)
		c.Call(testutil.Context(t), testutil.Delete, testutil.Credential(s.Atlas)...)
		if n := len(d.Attempts()); n != 1 {
			t.Errorf("%d attempts, want 1", n)
		}
	})
}

// TestUselessCreateIsNotRepeated: what Atlas refuses it will refuse again, and it counts how often.
func TestUselessCreateIsNotRepeated(t *testing.T) {
	t.Parallel()
	s, d := testutil.StartDoor(t)
	c := policyCaller(t, repeatEverything, s)
	for _, status := range []int{401, 403, 404, 409} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			defer s.Atlas.Inject(emulator.Fault{Status: status})()
			before := s.Atlas.Calls(emulator.Create)
			d.Expect()
			if got := c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...); got.Code == codes.OK {
				t.Fatalf("got %+v", got)
			}
			if calls, attempts := s.Atlas.Calls(emulator.Create)-before, len(d.Attempts()); calls != 1 || attempts != 1 {
				t.Errorf("%d attempts, and Atlas was called %d times: want 1 of each", attempts, calls)
			}
		})
	}
}

// TestErrorsFromEveryPlace: whatever place of the chain ends a call, its error has no headers, and
// a pushback.
func TestErrorsFromEveryPlace(t *testing.T) {
	t.Parallel()
	s, d := testutil.StartDoor(t, func(c *server.Config, _ *atlas.Config) { c.MaxCalls = 1 })
	c := s.GRPCCaller(t)
	t.Run("panic", func(t *testing.T) {
		d.Expect(testutil.ErrPanic)
		testutil.Want{Code: codes.Internal, Reason: "INTERNAL"}.Check(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
	})
	t.Run("limit", func(t *testing.T) {
		gate := s.Atlas.HoldAnswer(emulator.Create)
		held := testutil.Async(testutil.Context(t), c, testutil.Create, testutil.Credential(s.Atlas)...)
		if err := gate.Wait(testutil.Context(t), 1); err != nil {
			t.Fatal(err)
		}
		testutil.Want{Code: codes.ResourceExhausted, Reason: "OVERLOADED", Retry: time.Second}.Check(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
		gate.Release()
		testutil.WantCreated.Check(t, <-held)
	})
	t.Run("unknown method", func(t *testing.T) {
		got := c.Raw(testutil.Context(t), s.GRPCConn(t), "/"+ephemeraltokenv1.EphemeralTokenService_ServiceDesc.ServiceName+"/Other", nil)
		testutil.Want{Code: codes.Unimplemented, Reason: "ROUTE_NOT_FOUND"}.Check(t, got)
	})
}
