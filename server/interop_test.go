package server

import (
	"context"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/call"
	"github.com/ForstaLabs/ephemeral-token-service/internal/listen"
)

// TestInterop has gRPC's own interop client call a server with our options and our chain. Left out
// is what needs an identity of Google's, what is about load balancing, and cancel_after_begin: the
// client takes an answer that arrives while it cancels.
func TestInterop(t *testing.T) {
	if os.Getenv("TOKEND_LONG") != "1" {
		t.Skip("long: set TOKEND_LONG=1") // package testutil imports this one
	}
	client := filepath.Join(t.TempDir(), "interop-client")
	build := exec.CommandContext(t.Context(), "go", "build", "-modfile=tools/go.mod", "-o", client, "google.golang.org/grpc/interop/client")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("the interop client cannot be built: %v\n%s", err, out)
	}
	host, port, err := net.SplitHostPort(startInterop(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"empty_unary", "large_unary", "cancel_after_first_response", "timeout_on_sleeping_server", "special_status_message",
		"status_code_and_message", "unimplemented_method", "unimplemented_service", "custom_metadata", "client_streaming", "server_streaming",
		"ping_pong", "empty_stream", "rpc_soak", "channel_soak",
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, client, "--server_host="+host, "--server_port="+port, "--test_case="+name,
				"--additional_metadata=authorization:JWT a.b.c", "--soak_iterations=50", "--soak_overall_timeout_seconds=50", "--soak_per_iteration_max_acceptable_latency_ms=20000")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// startInterop serves gRPC's TestService, and returns its address. Its messages are larger than
// ours may be.
func startInterop(t *testing.T) string {
	t.Helper()
	cfg := Config{Auth: auth.NewPassThrough()}
	cfg.setDefaults()
	intercept := call.New(call.Config{
		Logger: cfg.Logger, Audit: slog.New(slog.DiscardHandler), MaxCalls: cfg.MaxCalls, Ceiling: cfg.CallCeiling, Auth: cfg.Auth, Metrics: benchMetrics,
	})
	// The chain gives every error a reason of our API. The TestService's own have to reach the
	// client as they are.
	around := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		var own error
		resp, err := intercept(ctx, req, info, func(ctx context.Context, req any) (resp any, err error) {
			resp, own = handler(ctx, req)
			return resp, nil
		})
		if own != nil {
			return nil, own
		}
		return resp, err
	}
	guard := benchGuard(t, cfg)
	opts := append(grpcOptions(cfg, guard, nil), grpc.MaxRecvMsgSize(1<<20), grpc.MaxSendMsgSize(1<<20), grpc.ChainUnaryInterceptor(around))
	srv := newGRPCServer(guard, ephemeraltokenv1.UnimplementedEphemeralTokenServiceServer{}, intercept, health.NewServer(), opts)
	testgrpc.RegisterTestServiceServer(srv, interop.NewTestServer())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = srv.Serve(listen.Track(listener, listen.Limits{Requests: listen.NewRequests(mostRequests)}))
	}()
	t.Cleanup(srv.Stop)
	return listener.Addr().String()
}
