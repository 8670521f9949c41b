package setup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/ForstaLabs/ephemeral-token-service/internal/config"
	"github.com/ForstaLabs/ephemeral-token-service/internal/lograte"
)

// traces are exported in the background over OTLP. A span that cannot be exported in time is
// dropped: no call waits for it.
type traces struct {
	endpoint, protocol string
	provider           *sdktrace.TracerProvider // nil in a trial
	log                *slog.Logger
}

// openTraces sets up tracing if OpenTelemetry's variables ask for it. The SDK reads them itself;
// here are those that decide whether there are traces, and by which exporter.
func (s *Setup) openTraces() {
	get := func(name string) string { return config.Lookup(s.opts.Environ, name) }
	otlp := func(name string) string {
		return cmp.Or(get("OTEL_EXPORTER_OTLP_TRACES_"+name), get("OTEL_EXPORTER_OTLP_"+name))
	}
	exporter, endpoint := get("OTEL_TRACES_EXPORTER"), otlp("ENDPOINT")
	if strings.EqualFold(get("OTEL_SDK_DISABLED"), "true") || exporter == "none" || exporter == "" && endpoint == "" {
		return
	}
	if exporter != "" && exporter != "otlp" {
		s.wrong("OTEL_TRACES_EXPORTER", errors.New("must be otlp or none"))
		return
	}
	t := &traces{endpoint: hostOf(endpoint), protocol: cmp.Or(otlp("PROTOCOL"), "http/protobuf"), log: lograte.Kind(s.log, "traces")}
	var export func(context.Context) (*otlptrace.Exporter, error)
	switch t.protocol {
	case "http/protobuf":
		var opts []otlptracehttp.Option
		if endpoint == "" { // OpenTelemetry's default is http, the exporter's https
			opts = append(opts, otlptracehttp.WithEndpointURL("http://localhost:4318/v1/traces"))
		}
		export = func(ctx context.Context) (*otlptrace.Exporter, error) { return otlptracehttp.New(ctx, opts...) }
	case "grpc":
		var opts []otlptracegrpc.Option
		if endpoint == "" {
			opts = append(opts, otlptracegrpc.WithEndpointURL("http://localhost:4317"))
		}
		export = func(ctx context.Context) (*otlptrace.Exporter, error) { return otlptracegrpc.New(ctx, opts...) }
	default:
		s.wrong("OTEL_EXPORTER_OTLP_PROTOCOL", errors.New("must be grpc or http/protobuf"))
		return
	}
	s.tracer = t
	if s.opts.Trial {
		return
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(t.failed))
	otel.SetLogger(logr.FromSlogHandler(messagesOnly{t.log.Handler()}))
	exporting, err := export(context.Background()) // which connects to nothing yet
	if err != nil {
		s.wrong("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", errors.New("OpenTelemetry's variables do not make an exporter: check the endpoint and the certificates"))
		return
	}
	t.provider = sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporting), sdktrace.WithResource(s.opts.Build.traceResource()))
	s.Config.Tracer, s.Config.Propagator = t.provider, propagator(get("OTEL_PROPAGATORS"))
}

// hostOf returns the host of an endpoint. Its path and user may contain a secret.
func hostOf(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil {
		return "the endpoint"
	}
	return cmp.Or(u.Host, "this machine")
}

// propagator returns W3C Trace Context, or none if the list has only others. Baggage is not read:
// it would go on to Atlas with whatever callers put into it.
func propagator(list string) propagation.TextMapPropagator {
	if list == "" || strings.Contains(list, "tracecontext") {
		return propagation.TraceContext{}
	}
	return propagation.NewCompositeTextMapPropagator()
}

// traceResource identifies the service in spans. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
// override it.
func (b Build) traceResource() *resource.Resource {
	of, err := resource.New(context.Background(),
		resource.WithTelemetrySDK(),
		resource.WithHost(),
		resource.WithAttributes(attribute.String("service.name", "tokend"), attribute.String("service.version", b.ShortVersion())),
		resource.WithFromEnv(),
	)
	if err != nil {
		otel.Handle(err) // of has what is known without it
	}
	return of
}

// messagesOnly leaves out the attributes of the SDK's own log: they quote variables, which may be
// secrets.
type messagesOnly struct{ slog.Handler }

func (h messagesOnly) Handle(ctx context.Context, r slog.Record) error {
	return h.Handler.Handle(ctx, slog.NewRecord(r.Time, r.Level, "OpenTelemetry: "+r.Message, 0))
}

func (h messagesOnly) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h messagesOnly) WithGroup(string) slog.Handler      { return h }

// failed logs that something was not exported. It leaves out the body of a collector's answer,
// which can have anything in it.
func (t *traces) failed(err error) {
	cause, _, _ := strings.Cut(err.Error(), "body: ")
	t.log.Warn("traces were not exported", slog.String("cause", cause))
}

// A stop waits between minFlush and maxFlush for the export of the last spans, as the drain has
// left time.
const (
	minFlush = time.Second
	maxFlush = 5 * time.Second
)

// flush exports what is left.
func (t *traces) flush(deadline time.Time) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), max(minFlush, min(maxFlush, time.Until(deadline))))
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.failed(fmt.Errorf("shutdown: %w", err))
	}
}
