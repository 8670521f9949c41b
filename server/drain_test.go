package server_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// TestDrain checks that a drain answers calls in progress and tells probes.
func TestDrain(t *testing.T) {
	t.Parallel()
	for _, mode := range []testutil.Security{testutil.Plaintext, testutil.MutualTLS} {
		t.Run(string(mode), func(t *testing.T) {
			s := testutil.Start(t, mode)
			if code, body := s.Get(t, "/healthz"); code != 200 || body != "ok\n" {
				t.Errorf("/healthz: %d %q", code, body)
			}
			testutil.Eventually(t, func() bool { code, body := s.Get(t, "/readyz"); return code == 200 && body == "ready\n" }, "/readyz does not become ready")
			watch, err := healthpb.NewHealthClient(s.GRPCConn(t)).Watch(testutil.Context(t), &healthpb.HealthCheckRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if first, err := watch.Recv(); err != nil || first.GetStatus() != healthpb.HealthCheckResponse_SERVING {
				t.Fatalf("watch: %v, %v", first, err)
			}

			gate := s.Atlas.Hold(emulator.Create)
			answers := make(chan testutil.Outcome)
			for _, c := range s.Callers(t) {
				go func() { answers <- c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...) }()
			}
			if err := gate.Wait(testutil.Context(t), 2); err != nil {
				t.Fatal(err)
			}
			stopped := make(chan error)
			go func() { stopped <- s.Stop() }()
			if next, err := watch.Recv(); err != nil || next.GetStatus() != healthpb.HealthCheckResponse_NOT_SERVING {
				t.Errorf("health while draining: %v, %v", next.GetStatus(), err)
			}
			if code, body := s.Get(t, "/readyz"); code != 503 || body != "draining\n" {
				t.Errorf("/readyz while draining: %d %q", code, body)
			}
			if code, _ := s.Get(t, "/healthz"); code != 200 {
				t.Errorf("/healthz while draining: %d", code)
			}
			testutil.Eventually(t, func() bool { _, err := net.Dial("tcp", s.HTTPAddr().String()); return err != nil }, "new connections are still accepted")
			select {
			case err := <-stopped:
				t.Fatalf("the server stopped with calls in progress: %v", err)
			default:
			}
			gate.Release()
			for range 2 {
				testutil.WantCreated.Check(t, <-answers)
			}
			if err := <-stopped; err != nil {
				t.Errorf("stop: %v", err)
			}
		})
	}
}

// TestDrainDelay checks that during the drain delay new calls and connections are served, and that
// answers ask REST clients to reconnect.
func TestDrainDelay(t *testing.T) {
	const delay = 5 * time.Second
	for _, mode := range []testutil.Security{testutil.Plaintext, testutil.MutualTLS} {
		t.Run(string(mode), func(t *testing.T) {
			testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
				s := v.Start(t, mode, func(c *server.Config, _ *atlas.Config) { c.DrainDelay = delay })
				before := s.Callers(t)
				for _, c := range before {
					if got := c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...); got.Code != codes.OK || got.Get("connection") != "" {
						t.Errorf("before: %+v", got)
					}
				}
				start, stopped := time.Now(), make(chan error, 1)
				go func() { stopped <- s.Stop() }()
				testutil.Eventually(t, func() bool { code, body := s.Get(t, "/readyz"); return code == 503 && body == "draining\n" }, "/readyz does not say draining")
				s.WantHealth(t, healthpb.HealthCheckResponse_NOT_SERVING)
				for _, callers := range []map[string]testutil.Caller{before, s.Callers(t), s.Callers(t)} {
					for name, c := range callers {
						got := c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...)
						testutil.WantCreated.Check(t, got)
						if closes := got.Get("connection") == "close"; name == "REST" && mode == testutil.Plaintext && !closes {
							t.Error("REST: no Connection: close") // HTTP/2 has GOAWAY instead
						}
					}
				}
				if err := <-stopped; err != nil || time.Since(start) < delay {
					t.Errorf("it stopped after %v: %v", time.Since(start), err)
				}
			})
		})
	}
}

// TestDrainTimeout checks that calls that do not end delay the stop by the drain timeout at most,
// and that they are answered: a create with a code to retry, a delete with an unknown outcome.
func TestDrainTimeout(t *testing.T) {
	t.Parallel()
	s := testutil.Start(t, testutil.Plaintext, func(c *server.Config, a *atlas.Config) { c.DrainTimeout, a.Timeout = 50*time.Millisecond, time.Minute })
	cases := map[testutil.Operation]struct {
		gate *emulator.Gate
		want testutil.Want
	}{
		testutil.Create: {s.Atlas.Hold(emulator.Create), testutil.Want{Code: codes.Unavailable, HTTP: 503, Reason: "SHUTTING_DOWN", Retry: time.Second}},
		testutil.Delete: {s.Atlas.Hold(emulator.Delete), testutil.WantUnknown},
	}
	var calls sync.WaitGroup
	for op, tc := range cases {
		for name, c := range s.Callers(t) {
			calls.Go(func() {
				got := c.Call(testutil.Context(t), op, testutil.Credential(s.Atlas)...)
				t.Logf("%s %s: %s", name, op, got.Reason)
				tc.want.Check(t, got)
			})
		}
		if err := tc.gate.Wait(testutil.Context(t), 2); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	calls.Wait()
	if !strings.Contains(s.Log.String(), "cut off") {
		t.Errorf("the log does not record the calls that were cut off:\n%s", s.Log)
	}
}

// TestDrainWithOpenStreams checks that a drain ends endless streams, and does not wait for calls
// whose message never arrives.
func TestDrainWithOpenStreams(t *testing.T) {
	for name, tc := range map[string]struct {
		open func(*testing.T, *testutil.Service)
		most time.Duration // delay of the stop
	}{
		"reflection": {func(t *testing.T, s *testutil.Service) {
			stream, err := reflectionpb.NewServerReflectionClient(s.GRPCConn(t)).ServerReflectionInfo(testutil.Context(t))
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
		}, 5 * time.Second},
		"health": {func(t *testing.T, s *testutil.Service) {
			watch, err := healthpb.NewHealthClient(s.GRPCConn(t)).Watch(testutil.Context(t), &healthpb.HealthCheckRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := watch.Recv(); err != nil {
				t.Fatal(err)
			}
		}, 5 * time.Second},
		"call without its message": {func(t *testing.T, s *testutil.Service) { testutil.OpenRawStreams(t, s, 100, testutil.CreateMethod) }, 10 * time.Second},
		"health check without its message": {func(t *testing.T, s *testutil.Service) {
			testutil.OpenRawStreams(t, s, 1, healthpb.Health_Check_FullMethodName)
		}, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
				s := v.Start(t, testutil.Plaintext, func(c *server.Config, _ *atlas.Config) { c.DrainTimeout = 25 * time.Second })
				tc.open(t, s)
				start := time.Now()
				if err := s.Stop(); err != nil {
					t.Errorf("stop: %v", err)
				}
				if took := time.Since(start); took > tc.most {
					t.Errorf("the open stream delayed the stop by %v", took)
				}
			})
		})
	}
}

// TestDrainDuringHandshakes checks that connections without a request do not hold up a stop,
// whatever part of their handshake has arrived.
func TestDrainDuringHandshakes(t *testing.T) {
	for mode, starts := range map[testutil.Security][]string{
		testutil.Plaintext: {"", "PRI * HTTP", "P"},
		testutil.ServerTLS: {"", "\x16", "\x16\x03\x01\x02\x00\x01\x00"},
	} {
		for _, start := range starts {
			t.Run(fmt.Sprintf("%s %q", mode, start), func(t *testing.T) {
				testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
					s := v.Start(t, mode, func(c *server.Config, _ *atlas.Config) { c.DrainTimeout = 25 * time.Second })
					for _, addr := range []net.Addr{s.GRPCAddr(), s.HTTPAddr()} {
						if _, err := io.WriteString(v.Dial(t, addr), start); err != nil {
							t.Fatal(err)
						}
					}
					<-time.After(time.Second) // for it to arrive
					began := time.Now()
					if err := s.Stop(); err != nil {
						t.Errorf("stop: %v", err)
					}
					if took := time.Since(began); took > 2*time.Second {
						t.Errorf("it held up the stop for %v", took)
					}
				})
			})
		}
	}
}

// TestDrainOfUnresponsiveClient checks that a client that acknowledges nothing delays the stop by
// the drain timeout only. grpc-go alone would wait for seconds.
func TestDrainOfUnresponsiveClient(t *testing.T) {
	testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
		s := v.Start(t, testutil.Plaintext, func(c *server.Config, _ *atlas.Config) { c.DrainTimeout = 50 * time.Millisecond })
		testutil.OpenRawStreams(t, s, 1, testutil.CreateMethod)
		start := time.Now()
		if err := s.Stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
		if took := time.Since(start); took > 4*time.Second {
			t.Errorf("the stop took %v", took)
		}
	})
}

// TestConnectionAge checks that an old gRPC connection closes after its calls, or after the call
// ceiling.
func TestConnectionAge(t *testing.T) {
	for _, ceiling := range []time.Duration{200 * time.Millisecond, 20 * time.Second} {
		t.Run(ceiling.String(), func(t *testing.T) {
			testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
				s := v.Start(t, testutil.Plaintext, func(c *server.Config, _ *atlas.Config) {
					c.CallCeiling, c.ConnectionAge = ceiling, 50*time.Millisecond
				})
				start := time.Now()
				watch, err := healthpb.NewHealthClient(s.GRPCConn(t)).Watch(testutil.Context(t), &healthpb.HealthCheckRequest{}) // it has no end
				for err == nil {
					_, err = watch.Recv()
				}
				if took := time.Since(start); took < ceiling || took > ceiling+3*time.Second {
					t.Errorf("the connection ended after %v", took)
				}
			})
		})
	}
}

// TestStopAtOnce checks a stop before the listeners serve.
func TestStopAtOnce(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 {
		srv, err := server.New(server.Config{GRPCAddr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0", AdminAddr: "127.0.0.1:0", Atlas: &atlas.Client{}})
		if err != nil {
			t.Fatal(err)
		}
		if err := srv.Run(ctx); err != nil {
			t.Fatal(err)
		}
	}
}
