package call

import (
	"context"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	codepb "google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
)

// The attributes of a span: OpenTelemetry's stable conventions for RPC, and our own.
const (
	rpcSystem     = attribute.Key("rpc.system.name")
	rpcMethod     = attribute.Key("rpc.method")
	rpcStatusCode = attribute.Key("rpc.response.status_code")
	errorType     = attribute.Key("error.type")
	transportKey  = attribute.Key("tokend.transport")
	cacheKey      = attribute.Key("tokend.cache")
)

// startSpan returns a context with the caller's trace, and starts the span of a call, which is nil
// without a Tracer. The span contains nothing that the caller sent except the trace's identifiers.
// otelgrpc and otelhttp are not used because they would make two spans of a call over REST, and
// spans of health checks.
func startSpan(ctx context.Context, cfg *Config, rec *Record, fullMethod string) (context.Context, trace.Span) {
	ctx = cfg.Propagator.Extract(ctx, traceHeaders{ctx})
	if cfg.Tracer == nil {
		return ctx, nil
	}
	name := strings.TrimPrefix(fullMethod, "/")
	return cfg.Tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
		rpcSystem.String("grpc"), rpcMethod.String(name), transportKey.String(rec.transport()),
	))
}

// endSpan ends a span with the outcome of the call: the reason, but not the cause.
func endSpan(span trace.Span, rec *Record, e *apierror.Error) {
	if span == nil {
		return
	}
	code := codeOf(e)
	if e != nil {
		span.SetAttributes(errorType.String(e.ReasonName()))
	}
	switch code {
	case codes.Unknown, codes.DeadlineExceeded, codes.Unimplemented, codes.Internal, codes.Unavailable, codes.DataLoss:
		span.SetStatus(otelcodes.Error, e.ReasonName()) // by the conventions, not for mistakes of the caller
	}
	span.SetAttributes(rpcStatusCode.String(codepb.Code(code).String())) //nolint:gosec // both have the same 17 codes
	if rec.Cache != "" {
		span.SetAttributes(cacheKey.String(rec.Cache))
	}
	span.End()
}

// traceHeaders lets a propagator read the headers of a call.
type traceHeaders struct{ ctx context.Context }

// Get joins the values of a header: a tracestate may come in several (W3C Trace Context section
// 3.3.1), and two traceparents are invalid. A tracestate that looks like a secret is dropped,
// because it would be exported and sent to Atlas.
func (h traceHeaders) Get(name string) string {
	text := strings.Join(metadata.ValueFromIncomingContext(h.ctx, name), ",")
	if name == "tracestate" && secretLike.MatchString(text) {
		return ""
	}
	return text
}

func (traceHeaders) Set(string, string) {}
func (traceHeaders) Keys() []string     { return nil }

// traceID returns the trace id of the call's span, or of its caller's if calls have no spans.
func traceID(ctx context.Context) string {
	if span := trace.SpanContextFromContext(ctx); span.HasTraceID() {
		return span.TraceID().String()
	}
	return ""
}
