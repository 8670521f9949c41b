package atlas

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// tracing makes a span of each request to Atlas, and tells Atlas of it. The attributes are those of
// OpenTelemetry's conventions for HTTP clients; there is no header and no body in them, and the URL
// has nothing secret.
type tracing struct {
	tracer     trace.Tracer
	propagator propagation.TextMapPropagator
	host       string
	port       int
}

// newTracing returns nil, which makes no spans, without a provider.
func newTracing(config Config, baseURL *url.URL) *tracing {
	if config.Tracer == nil {
		return nil
	}
	t := &tracing{tracer: config.Tracer.Tracer(modulePath + "/atlas"), propagator: config.Propagator, host: baseURL.Hostname(), port: 443}
	if port, err := strconv.Atoi(baseURL.Port()); err == nil {
		t.port = port
	}
	if t.propagator == nil {
		t.propagator = propagation.TraceContext{}
	}
	return t
}

// start begins the span of a request. Its name is what is the same for all requests of one
// operation.
func (t *tracing) start(ctx context.Context, r request, url string) (context.Context, trace.Span) {
	return t.tracer.Start(ctx, r.method+" "+r.path, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
		attribute.String("http.request.method", r.method),
		attribute.String("server.address", t.host),
		attribute.Int("server.port", t.port),
		attribute.String("url.full", url),
	))
}

// inject adds the span in ctx to the request's headers.
func (t *tracing) inject(ctx context.Context, header http.Header) {
	if t != nil {
		t.propagator.Inject(ctx, propagation.HeaderCarrier(header))
	}
}

// endSpan records how the request ended. err is nil or an *Error, whose cause is left out.
func endSpan(span trace.Span, status int, err error) {
	if status != 0 {
		span.SetAttributes(attribute.Int("http.response.status_code", status))
	}
	if e, ok := errors.AsType[*Error](err); ok {
		kind := e.Kind.String()
		if e.Kind == KindStatus {
			kind = strconv.Itoa(status)
		}
		span.SetAttributes(attribute.String("error.type", kind))
		span.SetStatus(codes.Error, "")
	}
	span.End()
}
