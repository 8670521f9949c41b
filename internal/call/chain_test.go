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

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
)

// TestChainOrder pins the order in which a call passes the chain: who is inside whom decides what is logged, recovered
// and let through.
func TestChainOrder(t *testing.T) {
	var names []string
	for _, interceptor := range interceptors(testConfig()) {
		// Such as "…/call.Recover", "…/chain.interceptors.observe" or "…/chain.interceptors.limit.func2".
		name := regexp.MustCompile(`(\.func\d+)+$`).ReplaceAllString(runtime.FuncForPC(reflect.ValueOf(interceptor).Pointer()).Name(), "")
		names = append(names, name[strings.LastIndexByte(name, '.')+1:])
	}
	if diff := cmp.Diff([]string{"observe", "Recover", "mapErrors", "limit", "authenticate", "limitCaller"}, names); diff != "" {
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

// testService is where the calls of the tests go.
var testService = grpc.ServiceDesc{ServiceName: "s", Methods: []grpc.MethodDesc{{MethodName: "M"}}}

// testConfig lets every Atlas JWT in and logs nothing.
func testConfig() Config {
	discard := slog.New(slog.DiscardHandler)
	return Config{Logger: discard, Audit: discard, MaxCalls: 1, Ceiling: time.Minute, Auth: auth.NewPassThrough(), Refused: func(string) {}, Metrics: NewMetrics(prometheus.NewRegistry(), testService)}
}

// run runs handler inside the whole chain, with a credential.
func run(t *testing.T, cfg Config, handler grpc.UnaryHandler) (any, error) {
	t.Helper()
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "JWT a.b.c"))
	return New(cfg)(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/s/M"}, handler)
}

// TestPanic: a panic fails its own call. What it was about may be a secret, so only its type is told, and where it was.
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
				t.Errorf("the panic's value is told: %s", log.String())
			}
			if !strings.Contains(log.String(), "TestPanic") {
				t.Errorf("the log has no stack: %s", log.String())
			}
		})
	}
	t.Run("of the runtime", func(t *testing.T) {
		var log bytes.Buffer
		cfg := testConfig()
		cfg.Logger = slog.New(slog.NewJSONHandler(&log, nil))
		_, _ = run(t, cfg, func(context.Context, any) (any, error) {
			return make([]int, 1)[len(t.Name())], nil
		})
		if !strings.Contains(log.String(), "index out of range") {
			t.Errorf("the log does not say what went wrong: %s", log.String())
		}
	})
}

// TestOverload: the call beyond the limit is refused at once, and a place is free again when a call ends.
func TestOverload(t *testing.T) {
	cfg, refused := testConfig(), 0
	cfg.Refused = func(limit string) {
		if refused++; limit != inProgressLimit {
			t.Errorf("refused for %s", limit)
		}
	}
	intercept := New(cfg)
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "JWT a.b.c"))
	run := func(handler grpc.UnaryHandler) error {
		_, err := intercept(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/s/M"}, handler)
		return err
	}
	entered, leave, done := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		done <- run(func(context.Context, any) (any, error) {
			close(entered)
			<-leave
			return nil, nil
		})
	}()
	<-entered
	ok := func(context.Context, any) (any, error) { return nil, nil }
	var e *apierror.Error
	if err := run(ok); !errors.As(err, &e) || e.Reason != apierror.Overloaded || e.RetryDelay() == 0 {
		t.Errorf("got %v, want OVERLOADED with a delay", err)
	}
	close(leave)
	if err := <-done; err != nil {
		t.Errorf("the call in progress failed: %v", err)
	}
	if err := run(ok); err != nil {
		t.Errorf("after it ended: %v", err)
	}
	if refused != 1 {
		t.Errorf("%d calls count as refused", refused)
	}
}

func TestCeiling(t *testing.T) {
	_, err := run(t, testConfig(), func(ctx context.Context, _ any) (any, error) {
		deadline, ok := ctx.Deadline()
		if left := time.Until(deadline); !ok || left > time.Minute || left < 50*time.Second {
			t.Errorf("a call without a deadline got %v, %v", left, ok)
		}
		return nil, nil
	})
	if err != nil {
		t.Error(err)
	}
}
