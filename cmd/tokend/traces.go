package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/ForstaLabs/ephemeral-token-service/internal/lograte"
)

// traces are exported in the background over OTLP. What cannot be exported in time is dropped: no call waits for it.
type traces struct {
	provider *sdktrace.TracerProvider
	log      *slog.Logger
}

// openTraces sets up tracing if OpenTelemetry's variables ask for it, and reports what is wrong with those.
func (s *setup) openTraces(vars variables) {
	set, errs := readTraceSettings(vars)
	s.errs = append(s.errs, errs...)
	if len(errs) > 0 || !set.on {
		return
	}
	if len(set.ignored) > 0 {
		s.Logger.Warn("tokend reads and sends W3C Trace Context only",
			slog.String("of", "OTEL_PROPAGATORS"), slog.String("ignored", strings.Join(set.ignored, ",")))
	}
	if s.tracesTo = "Traces go to " + cmp.Or(set.endpoint, "this machine") + " over OTLP.\n"; s.trial {
		return
	}
	t := &traces{log: lograte.Kind(s.Logger, "traces")}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(t.failed))
	// The SDK says here which variables it cannot read, with their values. Those are found before, and told without.
	otel.SetLogger(logr.Discard())
	exporter, err := newExporter(set)
	if err != nil {
		s.errs = append(s.errs, errors.New("traces: OpenTelemetry's variables do not make an exporter: check the endpoint and the certificates"))
		return
	}
	t.provider = sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(traceResource()))
	s.traces, s.Tracer, s.Propagator = t, t.provider, set.propagator
}

// newExporter connects to nothing yet. The variables that are not named here are read by the exporter itself. There is none for OTLP
// over gRPC: it would add half a megabyte to the program, and collectors take both.
func newExporter(set traceSettings) (*otlptrace.Exporter, error) {
	var opts []otlptracehttp.Option
	if set.endpoint == "" { // that of OpenTelemetry's specification; the exporter's own is https
		opts = append(opts, otlptracehttp.WithEndpointURL("http://localhost:4318/v1/traces"))
	}
	return otlptracehttp.New(context.Background(), opts...)
}

// traceResource is who makes the spans. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before what is said here.
func traceResource() *resource.Resource {
	of, err := resource.New(context.Background(),
		resource.WithTelemetrySDK(),
		resource.WithHost(),
		resource.WithAttributes(attribute.String("service.name", "tokend"), attribute.String("service.version", programVersion())),
		resource.WithFromEnv(),
	)
	if err != nil {
		otel.Handle(err) // what is known without that is in it
	}
	return of
}

// failed logs that something was not exported. Of a collector's answer it leaves out the body, in which anything may be.
func (t *traces) failed(err error) {
	cause, _, _ := strings.Cut(err.Error(), "body: ")
	t.log.Warn("traces were not exported", slog.String("cause", cause))
}

// Bounds of what a stop waits for the export of the last spans.
const (
	minFlush = time.Second // if the drain has taken all of its time
	maxFlush = 5 * time.Second
)

// flush exports what is left, within the time that a drain has.
func (t *traces) flush(by func() time.Time) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), max(minFlush, min(maxFlush, time.Until(by()))))
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.failed(err)
	}
}
