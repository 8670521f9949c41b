package server_test

import (
	"context"
	"log/slog"
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
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// TestDrain: calls in progress are answered, and probes can see that no more should be sent.
func TestDrain(t *testing.T) {
	for _, mode := range []security{plaintext, mutualTLS} {
		t.Run(string(mode), func(t *testing.T) {
			s := startService(t, mode)
			if code, body := s.get(t, "/healthz"); code != 200 || body != "ok\n" {
				t.Errorf("/healthz: %d %q", code, body)
			}
			eventually(t, func() bool { code, body := s.get(t, "/readyz"); return code == 200 && body == "ready\n" }, "/readyz does not become ready")
			watch, err := healthpb.NewHealthClient(s.grpcConn(t)).Watch(testContext(t), &healthpb.HealthCheckRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if first, err := watch.Recv(); err != nil || first.GetStatus() != healthpb.HealthCheckResponse_SERVING {
				t.Fatalf("watch: %v, %v", first, err)
			}

			gate := s.atlas.Hold(emulator.Create)
			answers := make(chan outcome)
			for _, c := range s.callers(t) {
				go func() { answers <- c.call(testContext(t), create, credential(s.atlas)...) }()
			}
			if err := gate.Wait(testContext(t), 2); err != nil {
				t.Fatal(err)
			}
			stopped := make(chan error)
			go func() { stopped <- s.stop() }()
			if next, err := watch.Recv(); err != nil || next.GetStatus() != healthpb.HealthCheckResponse_NOT_SERVING {
				t.Errorf("health while draining: %v, %v", next.GetStatus(), err)
			}
			if code, body := s.get(t, "/readyz"); code != 503 || body != "draining\n" {
				t.Errorf("/readyz while draining: %d %q", code, body)
			}
			if code, _ := s.get(t, "/healthz"); code != 200 {
				t.Errorf("/healthz while draining: %d", code)
			}
			eventually(t, func() bool { _, err := net.Dial("tcp", s.HTTPAddr().String()); return err != nil }, "new connections are still taken")
			select {
			case err := <-stopped:
				t.Fatalf("the server stopped with calls in progress: %v", err)
			default:
			}
			gate.Release()
			for range 2 {
				wantCreated.check(t, <-answers)
			}
			if err := <-stopped; err != nil {
				t.Errorf("stop: %v", err)
			}
		})
	}
}

// TestDrainDelay: for a while after it has said that it is not ready, the service answers new calls as before, also on new
// connections, and has REST clients connect anew.
func TestDrainDelay(t *testing.T) {
	const delay = 2 * time.Second
	for _, mode := range []security{plaintext, mutualTLS} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			s := startService(t, mode, func(c *server.Config, _ *atlas.Config) { c.DrainDelay = delay })
			before := s.callers(t)
			for _, c := range before {
				if got := c.call(testContext(t), create, credential(s.atlas)...); got.Code != codes.OK || got.header("connection") != "" {
					t.Errorf("before: %+v", got)
				}
			}
			start, stopped := time.Now(), make(chan error, 1)
			go func() { stopped <- s.stop() }()
			eventually(t, func() bool { code, body := s.get(t, "/readyz"); return code == 503 && body == "draining\n" }, "/readyz does not say that it drains")
			s.wantHealth(t, healthpb.HealthCheckResponse_NOT_SERVING)
			for _, callers := range []map[string]caller{before, s.callers(t), s.callers(t)} {
				for name, c := range callers {
					got := c.call(testContext(t), create, credential(s.atlas)...)
					if len(stopped) > 0 || time.Since(start) > delay {
						t.Skip("the machine is too busy to call within the delay")
					}
					wantCreated.check(t, got)
					if closes := got.header("connection") == "close"; name == "REST" && mode == plaintext && !closes {
						t.Error("REST: the client is not told to close its connection") // HTTP/2 has a GOAWAY instead
					}
				}
			}
			if err := <-stopped; err != nil || time.Since(start) < delay {
				t.Errorf("it stopped after %v: %v", time.Since(start), err)
			}
		})
	}
}

// TestDrainTimeout: a call that does not end holds up the stop for so long and no longer, and has an answer in the end: one that lets
// its caller try elsewhere, unless it is a delete, which may have been done.
func TestDrainTimeout(t *testing.T) {
	em, err := emulator.Start(emulator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	client, err := atlas.New(atlas.Config{BaseURL: em.URL(), RootCAs: em.CertPool(), Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	log := &lockedBuffer{}
	srv, err := server.New(server.Config{
		GRPCAddr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0", DrainTimeout: 50 * time.Millisecond, Atlas: client, Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &service{Server: srv, atlas: em, mode: plaintext}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	stopped := make(chan error)
	go func() { stopped <- srv.Run(ctx) }()
	cases := map[operation]struct {
		gate *emulator.Gate
		want want
	}{
		create: {em.Hold(emulator.Create), want{code: codes.Unavailable, http: 503, reason: "ATLAS_TIMEOUT", retry: time.Second}},
		remove: {em.Hold(emulator.Delete), wantUnknown},
	}
	var calls sync.WaitGroup
	for op, tc := range cases {
		for name, c := range s.callers(t) {
			calls.Go(func() {
				got := c.call(testContext(t), op, credential(em)...)
				t.Logf("%s %s: %s", name, op, got.Reason)
				tc.want.check(t, got)
			})
		}
		if err := tc.gate.Wait(testContext(t), 2); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := <-stopped; err != nil {
		t.Errorf("stop: %v", err)
	}
	calls.Wait()
	if !strings.Contains(log.String(), "cut off") {
		t.Errorf("the log does not say that calls were cut off:\n%s", log)
	}
}

// TestDrainWithOpenStreams: streams that have no end of their own are let go, and a call whose message never comes is not a
// call in progress.
func TestDrainWithOpenStreams(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		open func(*testing.T, *service)
		most time.Duration // that it may hold up the stop
	}{
		"reflection": {func(t *testing.T, s *service) {
			stream, err := reflectionpb.NewServerReflectionClient(s.grpcConn(t)).ServerReflectionInfo(testContext(t))
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
		"health": {func(t *testing.T, s *service) {
			watch, err := healthpb.NewHealthClient(s.grpcConn(t)).Watch(testContext(t), &healthpb.HealthCheckRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := watch.Recv(); err != nil {
				t.Fatal(err)
			}
		}, 5 * time.Second},
		"call without its message":         {func(t *testing.T, s *service) { openRawStreams(t, s, 100, createMethod) }, 10 * time.Second},
		"health check without its message": {func(t *testing.T, s *service) { openRawStreams(t, s, 1, healthpb.Health_Check_FullMethodName) }, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startService(t, plaintext, func(c *server.Config, _ *atlas.Config) { c.DrainTimeout = 15 * time.Second })
			tc.open(t, s)
			start := time.Now()
			if err := s.stop(); err != nil {
				t.Errorf("stop: %v", err)
			}
			if took := time.Since(start); took > tc.most {
				t.Errorf("an open stream held up the stop for %v", took)
			}
		})
	}
}

// TestDrainOfTheDeaf: a client that does not take notice of the end is cut off with the drain's timeout.
func TestDrainOfTheDeaf(t *testing.T) {
	t.Parallel()
	s := startService(t, plaintext, func(c *server.Config, _ *atlas.Config) { c.DrainTimeout = 50 * time.Millisecond })
	openRawStreams(t, s, 1, createMethod) // it acknowledges nothing, for which grpc-go alone would wait for seconds
	start := time.Now()
	if err := s.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("it held up the stop for %v", took)
	}
}

// TestConnectionAge: a connection that has to end waits for its calls as long as a call may take, no less and not much longer.
func TestConnectionAge(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ ceiling, least, most time.Duration }{
		"short": {200 * time.Millisecond, 200 * time.Millisecond, 5 * time.Second},
		"long":  {3 * time.Second, 3 * time.Second, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startService(t, plaintext, func(c *server.Config, _ *atlas.Config) {
				c.CallCeiling = tc.ceiling
				c.SetConnectionAge(50 * time.Millisecond)
			})
			start := time.Now()
			watch, err := healthpb.NewHealthClient(s.grpcConn(t)).Watch(testContext(t), &healthpb.HealthCheckRequest{}) // it has no end
			for err == nil {
				_, err = watch.Recv()
			}
			if took := time.Since(start); took < tc.least || took > tc.most {
				t.Errorf("the connection ended after %v, want %v to %v", took, tc.least, tc.most)
			}
		})
	}
}

// TestStopAtOnce: a stop that comes before the listeners serve is as clean as any.
func TestStopAtOnce(t *testing.T) {
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
