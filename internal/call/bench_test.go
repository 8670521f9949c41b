package call

import (
	"context"
	"log/slog"
	"testing"

	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/ForstaLabs/ephemeral-token-service/internal/lograte"
)

// BenchmarkChain compares a successful call with a refused one and a traced one.
func BenchmarkChain(b *testing.B) {
	for name, perSecond := range map[string]int{"served": 0, "refused": 1, "traced": 0} {
		b.Run(name, func(b *testing.B) {
			cfg := testConfig()
			cfg.CallerRate, cfg.MaxCalls = perSecond, 100
			cfg.Logger, _ = lograte.Limit(slog.New(slog.NewJSONHandler(discard{}, nil)))
			if name == "traced" {
				provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(tracetest.NewNoopExporter()))
				b.Cleanup(func() { _ = provider.Shutdown(context.Background()) })
				cfg.Tracer, cfg.Propagator = provider.Tracer(""), propagation.TraceContext{}
			}
			intercept := New(cfg)
			md := metadata.Pairs(":authority", "a", "content-type", "application/grpc", "user-agent", "grpc-go", "authorization", "JWT a.b.c")
			ctx := metadata.NewIncomingContext(b.Context(), md)
			ctx = grpc.NewContextWithServerTransportStream(ctx, discardStream{})
			b.ReportAllocs()
			for b.Loop() {
				_, _ = intercept(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/s/M"}, func(context.Context, any) (any, error) { return nil, nil })
			}
		})
	}
}

// discardStream discards response metadata. Without one, grpc-go formats an error with the context.
type discardStream struct{}

func (discardStream) Method() string               { return "/s/M" }
func (discardStream) SetHeader(metadata.MD) error  { return nil }
func (discardStream) SendHeader(metadata.MD) error { return nil }
func (discardStream) SetTrailer(metadata.MD) error { return nil }

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
