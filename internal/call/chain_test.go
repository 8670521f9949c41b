package call

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
)

// testService is the service that the tests call.
var testService = grpc.ServiceDesc{ServiceName: "s", Methods: []grpc.MethodDesc{{MethodName: "M"}}}

// testConfig accepts every Atlas JWT and logs nothing.
func testConfig() Config {
	discard := slog.New(slog.DiscardHandler)
	return Config{
		Logger: discard, Audit: discard, Metrics: NewMetrics(prometheus.NewRegistry(), testService),
		Auth: auth.NewPassThrough(), MaxCalls: 1, Refused: func(string) {}, Ceiling: time.Minute,
	}
}

// run runs handler inside the whole chain, with a credential.
func run(t *testing.T, cfg Config, handler grpc.UnaryHandler) (any, error) {
	t.Helper()
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "JWT a.b.c"))
	return New(cfg)(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/s/M"}, handler)
}

// TestPanic checks that a panic fails its own call, and that the log has its stack but not its
// value, which may be a secret.
func TestPanic(t *testing.T) {
	for name, value := range map[string]any{"string": "planted", "error": errors.New("planted"), "struct": struct{ s string }{"planted"}} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			cfg := testConfig()
			cfg.Logger = slog.New(slog.NewJSONHandler(&log, nil))
			_, err := run(t, cfg, func(context.Context, any) (any, error) { panic(value) })
			if status.Code(err) != codes.Internal {
				t.Errorf("got %v, want INTERNAL", err)
			}
			if strings.Contains(log.String()+err.Error(), "planted") {
				t.Errorf("the log has the panic's value: %s", log.String())
			}
			if !strings.Contains(log.String(), "TestPanic") {
				t.Errorf("the log has no stack: %s", log.String())
			}
		})
	}
	t.Run("runtime error", func(t *testing.T) {
		var log bytes.Buffer
		cfg := testConfig()
		cfg.Logger = slog.New(slog.NewJSONHandler(&log, nil))
		_, _ = run(t, cfg, func(context.Context, any) (any, error) {
			return make([]int, 1)[len(t.Name())], nil
		})
		if !strings.Contains(log.String(), "index out of range") {
			t.Errorf("the log does not have the error: %s", log.String())
		}
	})
}
