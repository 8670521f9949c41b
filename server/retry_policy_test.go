package server_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"slices"
	"sync"
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
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// recommendedConfig is the service config that callers are given.
const recommendedConfig = "../deploy/service-config.json"

// repeatEverything is the policy of a caller that tries whatever fails again, as often as gRPC lets it.
const repeatEverything = `{"methodConfig": [{"name": [{}], "retryPolicy": {
	"maxAttempts": 5, "initialBackoff": "0.001s", "maxBackoff": "0.001s", "backoffMultiplier": 1,
	"retryableStatusCodes": ["CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
		"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL",
		"UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"]}}]}`

var errPanic = errors.New("panic here")

// door counts the attempts that get as far as the service, whatever is done about them further in, and fails the first of
// them if it is told to.
type door struct {
	inside server.Tokens

	mu       sync.Mutex
	arrivals []time.Time // guarded by mu
	failures []error     // guarded by mu
}

func (d *door) arrive() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.arrivals = append(d.arrivals, time.Now())
	if len(d.failures) == 0 {
		return nil
	}
	err := d.failures[0]
	d.failures = d.failures[1:]
	if errors.Is(err, errPanic) {
		panic(err)
	}
	return err
}

func (d *door) Create(ctx context.Context, cred atlas.Credential, fresh bool) (tokencache.Result, error) {
	if err := d.arrive(); err != nil {
		return tokencache.Result{Status: tokencache.Status{Forward: tokencache.ForwardMiss}}, err
	}
	return d.inside.Create(ctx, cred, fresh)
}

func (d *door) Delete(ctx context.Context, cred atlas.Credential) (string, error) {
	if err := d.arrive(); err != nil {
		return "", err
	}
	return d.inside.Delete(ctx, cred)
}

func (d *door) Check() error { return d.inside.Check() }

// expect begins anew: the next attempts fail like this.
func (d *door) expect(failures ...error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.arrivals, d.failures = nil, failures
}

// attempts is when each of them came.
func (d *door) attempts() []time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.arrivals)
}

// startDoor runs a service behind a door.
func startDoor(t *testing.T, changes ...func(*server.Config, *atlas.Config)) (*service, *door) {
	t.Helper()
	d := &door{}
	return startService(t, plaintext, append(changes, func(c *server.Config, _ *atlas.Config) {
		c.SetTokens(func(a tokencache.Atlas) server.Tokens {
			cache, err := tokencache.New(a, tokencache.Config{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(cache.Close)
			d.inside = cache
			return d
		})
	})...), d
}

// policyCaller is a client of grpc-go with this service config.
func policyCaller(t *testing.T, config string, replicas ...*service) grpcCaller {
	t.Helper()
	names := manual.NewBuilderWithScheme("replicas")
	var found resolver.State
	for _, s := range replicas {
		found.Addresses = append(found.Addresses, resolver.Address{Addr: s.GRPCAddr().String()})
	}
	names.InitialState(found)
	conn, err := grpc.NewClient("replicas:///tokend", grpc.WithResolvers(names), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultServiceConfig(config))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return grpcCaller{ephemeraltokenv1.NewEphemeralTokenServiceClient(conn)}
}

// recommendedCaller goes by the service config that callers are given.
func recommendedCaller(t *testing.T, replicas ...*service) grpcCaller {
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
	s, d := startDoor(t)
	t.Run("a create is tried again, after the pushback", func(t *testing.T) {
		const pushback = 400 * time.Millisecond // longer than the policy's own first wait can be
		d.expect(unavailable(pushback))
		wantCreated.check(t, recommendedCaller(t, s).call(testContext(t), create, credential(s.atlas)...))
		at := d.attempts()
		if len(at) != 2 {
			t.Fatalf("%d attempts, want 2", len(at))
		}
		if waited := at[1].Sub(at[0]); waited < pushback {
			t.Errorf("the second attempt came after %v, want %v at least", waited, pushback)
		}
	})
	t.Run("one failure of Atlas does not reach the caller", func(t *testing.T) {
		before := s.atlas.Calls(emulator.Create)
		s.atlas.Inject(emulator.Fault{On: emulator.Create, Times: 1, Status: http.StatusServiceUnavailable})
		wantCreated.check(t, recommendedCaller(t, s).call(testContext(t), create, credential(s.atlas)...))
		if calls := s.atlas.Calls(emulator.Create) - before; calls != 2 {
			t.Errorf("Atlas was called %d times, want 2", calls)
		}
	})
	t.Run("three attempts and no more", func(t *testing.T) {
		d.expect(slices.Repeat([]error{unavailable(time.Millisecond)}, 5)...)
		w := want{code: codes.Unavailable, http: 503, reason: "ATLAS_UNAVAILABLE", retry: time.Millisecond}
		w.check(t, recommendedCaller(t, s).call(testContext(t), create, credential(s.atlas)...))
		if n := len(d.attempts()); n != 3 {
			t.Errorf("%d attempts, want 3", n)
		}
	})
	t.Run("a delete is not tried again", func(t *testing.T) {
		// Not even one that never reached Atlas, of which the service itself would say that it may be.
		d.expect(unsent(time.Second))
		wantUnreachable.check(t, recommendedCaller(t, s).call(testContext(t), remove, credential(s.atlas)...))
		if n := len(d.attempts()); n != 1 {
			t.Errorf("%d attempts, want 1", n)
		}
	})
}

// TestRecommendedPolicyGoesByHealth: calls go to all replicas, and leave one that drains while it would still answer them.
func TestRecommendedPolicyGoesByHealth(t *testing.T) {
	t.Parallel()
	leaving, atLeaving := startDoor(t, func(c *server.Config, _ *atlas.Config) { c.DrainDelay = 15 * time.Second })
	staying, atStaying := startDoor(t)
	c := recommendedCaller(t, leaving, staying)
	call := func() { wantCreated.check(t, c.call(testContext(t), create, "authorization", "JWT a.b.c")) }
	for _, s := range []*service{leaving, staying} {
		s.atlas.Inject(emulator.Fault{Status: http.StatusCreated, Body: `{"token": "t"}`}) // for whichever JWT
	}
	eventually(t, func() bool {
		call()
		return len(atLeaving.attempts()) > 0 && len(atStaying.attempts()) > 0
	}, "one of the replicas gets no call")

	go func() { _ = leaving.stop() }() // awaited, and looked at, when the test ends
	eventually(t, func() bool {
		atLeaving.expect()
		for range 10 {
			call()
		}
		return len(atLeaving.attempts()) == 0
	}, "the replica that drains still gets calls")
	wantCreated.check(t, leaving.grpcCaller(t).call(testContext(t), create, "authorization", "JWT a.b.c"))
}

// TestDeleteIsNotRepeated: not even by a caller whose own policy says to repeat everything, whatever Atlas did with it.
func TestDeleteIsNotRepeated(t *testing.T) {
	s, d := startDoor(t, func(_ *server.Config, a *atlas.Config) { a.Timeout = 300 * time.Millisecond })
	c := policyCaller(t, repeatEverything, s)
	faults := append(atlasFaults(),
		faultCase{name: "04 slow answer", fault: emulator.Fault{Delay: time.Hour}},
		faultCase{name: "04 slow answer, done", fault: emulator.Fault{Delay: time.Hour, AfterEffect: true}},
		faultCase{name: "06 redirect", fault: emulator.Fault{Status: http.StatusTemporaryRedirect, Header: http.Header{"Location": {"/v1/ephemeral-token"}}}},
		faultCase{name: "02 connection closed", fault: emulator.Fault{Drop: emulator.CloseConnection}},
		faultCase{name: "23 stream reset", fault: emulator.Fault{Drop: emulator.AbortStream}},
		faultCase{name: "02 reset, done", fault: emulator.Fault{Drop: emulator.ResetConnection, AfterEffect: true}},
	)
	for _, tc := range faults {
		if tc.delete.retry > 0 {
			continue // Atlas says that it has not done it, and when it may be asked again: see below
		}
		t.Run(tc.name, func(t *testing.T) {
			defer s.atlas.Inject(tc.fault)()
			before := s.atlas.Calls(emulator.Delete)
			d.expect()
			c.call(testContext(t), remove, credential(s.atlas)...)
			if calls, attempts := s.atlas.Calls(emulator.Delete)-before, len(d.attempts()); calls != 1 || attempts != 1 {
				t.Errorf("%d attempts, and Atlas got %d deletes: want 1 of each", attempts, calls)
			}
		})
	}
	t.Run("12 throttled", func(t *testing.T) {
		s.atlas.Inject(emulator.Fault{On: emulator.Delete, Times: 1, Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"1"}}})
		d.expect()
		wantDeleted.check(t, c.call(testContext(t), remove, credential(s.atlas)...))
		if at := d.attempts(); len(at) != 2 || at[1].Sub(at[0]) < time.Second {
			t.Errorf("attempts at %v: want two, a second apart", at)
		}
	})
	t.Run("01 never sent", func(t *testing.T) {
		before := s.atlas.Calls(emulator.Delete)
		d.expect(unsent(time.Millisecond), unsent(time.Millisecond))
		wantDeleted.check(t, c.call(testContext(t), remove, credential(s.atlas)...))
		if calls, attempts := s.atlas.Calls(emulator.Delete)-before, len(d.attempts()); calls != 1 || attempts != 3 {
			t.Errorf("%d attempts, and Atlas got %d deletes: want 3 and 1", attempts, calls)
		}
	})
	t.Run("copies may live on", func(t *testing.T) {
		d.expect(slices.Repeat([]error{&tokencache.UnsettledError{Err: context.DeadlineExceeded}}, 5)...)
		c.call(testContext(t), remove, credential(s.atlas)...)
		if n := len(d.attempts()); n != 1 {
			t.Errorf("%d attempts, want 1", n)
		}
	})
}

// TestUselessCreateIsNotRepeated: what Atlas refuses it will refuse again, and it counts how often.
func TestUselessCreateIsNotRepeated(t *testing.T) {
	s, d := startDoor(t)
	c := policyCaller(t, repeatEverything, s)
	for _, status := range []int{401, 403, 404, 409} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			defer s.atlas.Inject(emulator.Fault{Status: status})()
			before := s.atlas.Calls(emulator.Create)
			d.expect()
			if got := c.call(testContext(t), create, credential(s.atlas)...); got.Code == codes.OK {
				t.Fatalf("got %+v", got)
			}
			if calls, attempts := s.atlas.Calls(emulator.Create)-before, len(d.attempts()); calls != 1 || attempts != 1 {
				t.Errorf("%d attempts, and Atlas was called %d times: want 1 of each", attempts, calls)
			}
		})
	}
}

// TestErrorsFromEveryPlace: whatever place of the chain ends a call, its error has no headers, and a pushback.
func TestErrorsFromEveryPlace(t *testing.T) {
	s, d := startDoor(t, func(c *server.Config, _ *atlas.Config) { c.MaxCalls = 1 })
	c := s.grpcCaller(t)
	t.Run("panic", func(t *testing.T) {
		d.expect(errPanic)
		want{code: codes.Internal, reason: "INTERNAL"}.check(t, c.call(testContext(t), create, credential(s.atlas)...))
	})
	t.Run("limit", func(t *testing.T) {
		gate := s.atlas.HoldAnswer(emulator.Create)
		held := started(testContext(t), c, create, credential(s.atlas)...)
		if err := gate.Wait(testContext(t), 1); err != nil {
			t.Fatal(err)
		}
		want{code: codes.ResourceExhausted, reason: "OVERLOADED", retry: time.Second}.check(t, c.call(testContext(t), create, credential(s.atlas)...))
		gate.Release()
		wantCreated.check(t, <-held)
	})
	t.Run("unknown method", func(t *testing.T) {
		got := c.raw(testContext(t), s.grpcConn(t), "/"+ephemeraltokenv1.EphemeralTokenService_ServiceDesc.ServiceName+"/Other", nil)
		want{code: codes.Unimplemented, reason: "ROUTE_NOT_FOUND"}.check(t, got)
	})
}
