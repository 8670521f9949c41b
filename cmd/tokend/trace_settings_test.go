package main

import (
	"log/slog"
	"net/http"
	"testing"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// Without OpenTelemetry's variables there is no tracer, so neither spans nor a cost of them; those that do not say where to, or that
// say not to, change nothing.
func TestTracesOff(t *testing.T) {
	for name, environ := range map[string][]string{
		"none":      nil,
		"empty":     {"OTEL_TRACES_EXPORTER=", "OTEL_EXPORTER_OTLP_ENDPOINT= "},
		"others":    {"OTEL_SERVICE_NAME=tokend", "OTEL_PROPAGATORS=b3", "OTEL_METRICS_EXPORTER=otlp"},
		"disabled":  {"OTEL_SDK_DISABLED=true", "OTEL_EXPORTER_OTLP_ENDPOINT=nonsense"},
		"elsewhere": {"OTEL_TRACES_EXPORTER=none", "OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318"},
	} {
		s := &setup{Config: server.Config{Logger: slog.New(slog.DiscardHandler)}}
		s.openTraces(otelVariables(environ))
		if s.Tracer != nil || s.traces != nil || s.errs != nil {
			t.Errorf("%s: %v", name, s.errs)
		}
	}
}

func TestTraceSettings(t *testing.T) {
	for entry, want := range map[string]bool{
		"OTEL_EXPORTER_OTLP_ENDPOINT=https://collector:4318/prefix": true,
		"OTEL_EXPORTER_OTLP_ENDPOINT=collector:4318":                false, // the exporter would go on with its default
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://":                false,
		"OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf":                 true,
		"OTEL_EXPORTER_OTLP_PROTOCOL=grpc":                          false,
		"OTEL_EXPORTER_OTLP_PROTOCOL=http/json":                     false,
		"OTEL_EXPORTER_OTLP_COMPRESSION=zstd":                       false,
		"OTEL_EXPORTER_OTLP_TIMEOUT=10s":                            false,
		"OTEL_EXPORTER_OTLP_HEADERS=a=b%20c,d=e":                    true,
		"OTEL_EXPORTER_OTLP_HEADERS=a=b%0Ac":                        false,
		"OTEL_EXPORTER_OTLP_HEADERS=a b=c":                          false,
		"OTEL_EXPORTER_OTLP_CERTIFICATE=/nowhere":                   false,
		"OTEL_EXPORTER_OTLP_CLIENT_KEY=/nowhere":                    false,
		"OTEL_EXPORTER_OTLP_INSECURE=True":                          true,
		"OTEL_EXPORTER_OTLP_INSECURE=yes":                           false,
		"OTEL_RESOURCE_ATTRIBUTES=a":                                false,
		"OTEL_TRACES_SAMPLER=parentbased_traceidratio":              true,
		"OTEL_TRACES_SAMPLER=xray":                                  false,
		"OTEL_TRACES_SAMPLER_ARG=xray":                              true, // of no sampler
		"OTEL_BSP_MAX_QUEUE_SIZE=0":                                 false,
		"OTEL_SDK_DISABLED=no":                                      false,
	} {
		_, errs := readTraceSettings(otelVariables([]string{"OTEL_TRACES_EXPORTER=otlp", entry}))
		if (errs == nil) != want {
			t.Errorf("%s: %v", entry, errs)
		}
	}
}

func TestPropagators(t *testing.T) {
	sent := trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}}))
	for list, want := range map[string]struct {
		told    bool
		ignored int
	}{"": {true, 0}, "tracecontext,baggage": {true, 1}, "b3": {false, 1}, "none": {false, 0}} {
		p, ignored := propagators(list)
		header := http.Header{}
		p.Inject(sent, propagation.HeaderCarrier(header))
		if told := header.Get("Traceparent") != ""; told != want.told || len(ignored) != want.ignored {
			t.Errorf("%q: told %v, ignored %q", list, told, ignored)
		}
	}
}
