package call

import (
	"context"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	codepb "google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
	"github.com/ForstaLabs/ephemeral-token-service/internal/headers"
)

// tracing makes a span of each call, the same over both transports: a REST request is the same RPC in this process, so that
// otelhttp and otelgrpc would make two spans of it, and of health checks too. Nothing that a caller sends is in it, but for the
// identifiers of the trace itself.
type tracing struct {
	tracer     trace.Tracer
	propagator propagation.TextMapPropagator
}

// Attributes by the stable conventions of OpenTelemetry for RPC, and our own.
const (
	rpcSystem     = attribute.Key("rpc.system.name")
	rpcMethod     = attribute.Key("rpc.method")
	rpcStatusCode = attribute.Key("rpc.response.status_code")
	errorType     = attribute.Key("error.type")
	transportKey  = attribute.Key("tokend.transport")
	cacheKey      = attribute.Key("tokend.cache")
)

// start begins the span of a call. The span is nil without tracing, which costs nothing then.
func (t *tracing) start(ctx context.Context, fullMethod string) (context.Context, trace.Span) {
	if t == nil {
		return ctx, nil
	}
	ctx = t.propagator.Extract(ctx, traceHeaders{ctx})
	over, _ := transportOf(ctx)
	name := strings.TrimPrefix(fullMethod, "/")
	return t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
		rpcSystem.String("grpc"), rpcMethod.String(name), transportKey.String(over.String()),
	))
}

// endSpan tells how the call ended, by the name of its reason: the cause is for the log.
func endSpan(span trace.Span, rec *Record, err error) {
	if span == nil {
		return
	}
	code := codes.OK
	if err != nil {
		e := apierror.From(err)
		code = e.Code()
		span.SetAttributes(errorType.String(e.ReasonName()))
		if isServerError(code) {
			span.SetStatus(otelcodes.Error, e.ReasonName())
		}
	}
	span.SetAttributes(rpcStatusCode.String(codepb.Code(code).String())) //nolint:gosec // both count the same 17 codes
	if rec.Cache != "" {
		span.SetAttributes(cacheKey.String(rec.Cache))
	}
	span.End()
}

// isServerError reports whether a code is an error of the server's span. What its caller did wrong is not, by the conventions.
func isServerError(code codes.Code) bool {
	switch code {
	case codes.Unknown, codes.DeadlineExceeded, codes.Unimplemented, codes.Internal, codes.Unavailable, codes.DataLoss:
		return true
	}
	return false
}

// traceHeaders are a call's headers, for a propagator to read.
type traceHeaders struct{ ctx context.Context }

// Get joins the values of a header: a tracestate may come in several (W3C Trace Context §3.3.1), and of two traceparents none is
// taken. What looks like a secret in a tracestate would be exported, and sent to Atlas, so all of that is dropped.
func (h traceHeaders) Get(name string) string {
	text := strings.Join(headers.Values(h.ctx, name), ",")
	if name == "tracestate" && secretLike.MatchString(text) {
		return ""
	}
	return text
}

func (traceHeaders) Set(string, string) {}
func (traceHeaders) Keys() []string     { return nil }

// traceID is that of the call's span, without one that of the caller's traceparent.
func traceID(ctx context.Context, traceparent []string) string {
	if span := trace.SpanContextFromContext(ctx); span.HasTraceID() {
		return span.TraceID().String()
	}
	return callersTraceID(traceparent)
}

// callersTraceID takes the trace id out of a W3C traceparent: 00-<32 hex digits>-<16>-<2>. What is not one is left out.
func callersTraceID(traceparent []string) string {
	if len(traceparent) != 1 {
		return ""
	}
	parts := strings.Split(traceparent[0], "-")
	if len(parts) < 4 || len(parts[0]) != 2 || len(parts[1]) != 32 || strings.Trim(parts[1], "0123456789abcdef") != "" {
		return ""
	}
	return parts[1]
}
