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
	_ "google.golang.org/grpc/health" // for healthCheckConfig
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// recommendedConfig is the recommended service config.
var recommendedConfig = testutil.Path("deploy/service-config.json")

// repeatEverything is a policy that retries every failure as often as gRPC permits.
const repeatEverything = `{"methodConfig": [{"name": [{}], "retryPolicy": {
	"maxAttempts": 5, "initialBackoff": "0.001s", "maxBackoff": "0.001s", "backoffMultiplier": 1,
	"retryableStatusCodes": ["CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
		"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL",
		"UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"]}}]}`

// policyCaller returns a grpc-go client with this service config.
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

// recommendedCaller returns a client with the recommended service config.
func recommendedCaller(t *testing.T, replicas ...*testutil.Service) testutil.GRPCCaller {
	t.Helper()
	config, err := os.ReadFile(recommendedConfig)
	if err != nil {
		t.Fatal(err)
	}
	return policyCaller(t, string(config), replicas...)
}

// unsent is the error of a delete that was not sent and may be retried after d.
func unsent(d time.Duration) error {
	return &atlas.Error{Op: atlas.OpDelete, Kind: atlas.KindUnreachable, RetryAfter: d}
}

// unavailable is the error of a failing Atlas with this retry delay.
func unavailable(d time.Duration) error {
	return &atlas.Error{Op: atlas.OpCreate, Kind: atlas.KindStatus, StatusCode: http.StatusServiceUnavailable, Sent: true, RetryAfter: d}
}

// TestRecommendedPolicy checks the retries of the recommended service config.
func TestRecommendedPolicy(t *testing.T) {
	t.Parallel()
	s, d := testutil.StartDoor(t)
	t.Run("a create is retried after the pushback", func(t *testing.T) {
		const pushback = 400 * time.Millisecond // longer than the policy's first backoff
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
	t.Run("tokend itself retries one failure of Atlas", func(t *testing.T) {
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
	t.Run("a delete is not retried", func(t *testing.T) {
		// Not even one that was not sent, for which the response permits a retry.
		d.Expect(unsent(time.Second))
		testutil.WantUnreachable.Check(t, recommendedCaller(t, s).Call(testutil.Context(t), testutil.Delete, testutil.Credential(s.Atlas)...))
		if n := len(d.Attempts()); n != 1 {
			t.Errorf("%d attempts, want 1", n)
		}
	})
}

// TestRecommendedPolicyUsesHealth checks that calls go to all replicas, except one that drains.
func TestRecommendedPolicyUsesHealth(t *testing.T) {
	testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
		atLeaving, atStaying := &testutil.Door{}, &testutil.Door{}
		leaving := v.Start(t, testutil.Plaintext, atLeaving.Guard(t), func(c *server.Config, _ *atlas.Config) { c.DrainDelay = 15 * time.Second })
		staying := v.Start(t, testutil.Plaintext, atStaying.Guard(t))
		c := recommendedCaller(t, leaving, staying)
		call := func() {
			testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, "authorization", "JWT a.b.c"))
		}
		for _, s := range []*testutil.Service{leaving, staying} {
			s.Atlas.Inject(emulator.Fault{Status: http.StatusCreated, Body: `{"token": "t"}`}) // for any JWT
		}
		testutil.Eventually(t, func() bool {
			call()
			return len(atLeaving.Attempts()) > 0 && len(atStaying.Attempts()) > 0
		}, "one of the replicas receives no call")

		go func() { _ = leaving.Stop() }() // checked when the test ends
		testutil.Eventually(t, func() bool {
			atLeaving.Expect()
			for range 10 {
				call()
			}
			return len(atLeaving.Attempts()) == 0
		}, "the draining replica still receives calls")
		testutil.WantCreated.Check(t, leaving.GRPCCaller(t).Call(testutil.Context(t), testutil.Create, "authorization", "JWT a.b.c"))
	})
}

// TestDeleteIsNotRepeated checks that no policy of a client retries a delete that may have been
// sent.
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
			continue // not done, and may be retried: see below
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
	t.Run("unsettled", func(t *testing.T) {
		d.Expect(slices.Repeat([]error{&tokencache.UnsettledError{Err: context.DeadlineExceeded}}, 5)...)
		c.Call(testutil.Context(t), testutil.Delete, testutil.Credential(s.Atlas)...)
		if n := len(d.Attempts()); n != 1 {
			t.Errorf("%d attempts, want 1", n)
		}
	})
}
