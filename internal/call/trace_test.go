package call

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
)

// TestSpan checks that a call has a span below its caller's, with its outcome and nothing that the
// caller sent.
func TestSpan(t *testing.T) {
	const traceID, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for name, tc := range map[string]struct {
		handler grpc.UnaryHandler
		status  string
		want    map[string]string
	}{
		"success": {func(ctx context.Context, _ any) (any, error) {
			RecordFrom(ctx).Cache = "tokend; fwd=miss"
			return nil, nil
		}, "Unset", map[string]string{"rpc.response.status_code": "OK", "tokend.cache": "tokend; fwd=miss"}},
		"error of the caller": {
			func(context.Context, any) (any, error) { return nil, &apierror.Error{Reason: apierror.AtlasForbidden} },
			"Unset", map[string]string{"rpc.response.status_code": "PERMISSION_DENIED", "error.type": "ATLAS_FORBIDDEN"},
		},
		"our error": {
			func(context.Context, any) (any, error) { panic("planted") },
			"Error", map[string]string{"rpc.response.status_code": "INTERNAL", "error.type": "INTERNAL"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			recorder := tracetest.NewSpanRecorder()
			cfg := testConfig()
			cfg.Tracer, cfg.Propagator = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder)).Tracer(""), propagation.TraceContext{}
			ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "JWT a.b.c", "traceparent", "00-"+traceID+"-"+parent+"-01", "tracestate", "a=1"))
			_, _ = New(cfg)(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/s/M"}, tc.handler)
			span := recorder.Ended()[0]
			got := map[string]string{}
			for _, a := range span.Attributes() {
				got[string(a.Key)] = a.Value.String()
			}
			want := map[string]string{"rpc.system.name": "grpc", "rpc.method": "s/M", "tokend.transport": "grpc"}
			for key, value := range tc.want {
				want[key] = value
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("attributes (-want +got):\n%s", diff)
			}
			if span.Name() != "s/M" || span.Parent().TraceID().String() != traceID || span.Parent().SpanID().String() != parent || span.Parent().TraceState().String() != "a=1" {
				t.Errorf("%s below %+v", span.Name(), span.Parent())
			}
			if got := span.Status(); got.Code.String() != tc.status || strings.Contains(got.Description, "planted") {
				t.Errorf("status is %+v, want %s", got, tc.status)
			}
		})
	}
}

// TestTraceHeaders checks that trace headers are passed on, except a secret in a tracestate.
func TestTraceHeaders(t *testing.T) {
	const secret = "0fd801d60dfe6c7bcc1b305de304d07a8fb26ea7"
	for _, tc := range []struct{ name, value, want string }{
		{"tracestate", "vendor=1", "vendor=1"},
		{"tracestate", "vendor=" + secret, ""},
		{"tracestate", "vendor=eyJhbGciOiJub25lIn0", ""},
		{"traceparent", "00-" + secret[:32] + "-b7ad6b7169203331-01", "00-" + secret[:32] + "-b7ad6b7169203331-01"}, // as long as a token
	} {
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs(tc.name, tc.value))
		if got := (traceHeaders{ctx}).Get(tc.name); got != tc.want {
			t.Errorf("%s %q: %q, want %q", tc.name, tc.value, got, tc.want)
		}
	}
}
