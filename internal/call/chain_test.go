package call

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"reflect"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
)

// TestChainOrder checks the order of the chain, outermost first.
func TestChainOrder(t *testing.T) {
	var names []string
	for _, interceptor := range interceptors(testConfig()) {
		// Such as "…/call.recoverPanic" or "…/call.interceptors.limit.func2".
		name := regexp.MustCompile(`(\.func\d+)+$`).ReplaceAllString(runtime.FuncForPC(reflect.ValueOf(interceptor).Pointer()).Name(), "")
		names = append(names, name[strings.LastIndexByte(name, '.')+1:])
	}
	if diff := cmp.Diff([]string{"observe", "recoverPanic", "limit", "authenticate", "limitCaller"}, names); diff != "" {
		t.Errorf("chain (-want +got):\n%s", diff)
	}
}

func TestChainNests(t *testing.T) {
	var trail []string
	step := func(name string) grpc.UnaryServerInterceptor {
		return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			trail = append(trail, name)
			defer func() { trail = append(trail, "/"+name) }()
			return handler(ctx, req)
		}
	}
	_, _ = join(step("a"), step("b"))(t.Context(), nil, &grpc.UnaryServerInfo{}, func(context.Context, any) (any, error) {
		trail = append(trail, "handler")
		return nil, nil
	})
	if diff := cmp.Diff([]string{"a", "b", "handler", "/b", "/a"}, trail); diff != "" {
		t.Errorf("trail (-want +got):\n%s", diff)
	}
}

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
