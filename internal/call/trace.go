package call

import (
	"context"
	"strconv"
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

// startSpan starts the span of a call; it returns a nil span without a Tracer. The span contains
// nothing that the caller sent except the trace's identifiers. otelgrpc and otelhttp are not used
// because they would make two spans of a call over REST, and spans of health checks.
func startSpan(ctx context.Context, cfg Config, rec *Record, fullMethod string) (context.Context, trace.Span) {
	if cfg.Tracer == nil {
		return ctx, nil
	}
	ctx = cfg.Propagator.Extract(ctx, traceHeaders{ctx})
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

// traceID returns the trace id of the call's span, or of the caller's traceparent without one.
func traceID(ctx context.Context) string {
	if span := trace.SpanContextFromContext(ctx); span.HasTraceID() {
		return span.TraceID().String()
	}
	id, _ := parentTrace(ctx)
	return id
}

// sampledTrace returns the trace id of the call if the trace is sampled: by its span, or by the
// caller's traceparent without one.
func sampledTrace(ctx context.Context) string {
	if span := trace.SpanContextFromContext(ctx); span.IsSampled() {
		return span.TraceID().String()
	} else if span.IsValid() {
		return ""
	}
	id, flags := parentTrace(ctx)
	if sampled, err := strconv.ParseUint(flags, 16, 8); err != nil || sampled&1 == 0 || strings.Trim(id, "0") == "" {
		return ""
	}
	return id
}

// parentTrace returns the trace id of the caller's traceparent, 00-<32 hex digits>-<16>-<2>, and the
// flags of one in version 00. Both are empty if it has another form.
func parentTrace(ctx context.Context) (id, flags string) {
	values := metadata.ValueFromIncomingContext(ctx, "traceparent")
	if len(values) != 1 {
		return "", ""
	}
	parts := strings.Split(values[0], "-")
	if len(parts) < 4 || len(parts[0]) != 2 || len(parts[1]) != 32 || strings.Trim(parts[1], "0123456789abcdef") != "" {
		return "", ""
	}
	if len(parts) == 4 && len(parts[2]) == 16 && len(parts[3]) == 2 {
		flags = parts[3]
	}
	return parts[1], flags
}
