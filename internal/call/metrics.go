package call

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
	"github.com/ForstaLabs/ephemeral-token-service/internal/headers"
)

// handlingBuckets reach from an answer out of memory to the ceiling of a call, in seconds.
var handlingBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

// Metrics count and time the calls of one service, by names that gRPC's usual dashboards know. All label values are created up front:
// callers cannot add any.
type Metrics struct {
	started, handled, failed *prometheus.CounterVec
	seconds                  *prometheus.HistogramVec
	inFlight                 *prometheus.GaugeVec

	service string
	methods []string
}

// NewMetrics makes and registers the metrics of a service.
func NewMetrics(registry prometheus.Registerer, service grpc.ServiceDesc) *Metrics {
	factory := promauto.With(registry)
	labels := []string{"grpc_type", "grpc_service", "grpc_method", "transport"}
	m := &Metrics{
		service: service.ServiceName,
		started: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "grpc_server_started_total", Help: "Calls that have begun, over gRPC or REST.",
		}, labels),
		handled: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "grpc_server_handled_total", Help: "Calls that have ended, over gRPC or REST, by code.",
		}, append(labels, "grpc_code")),
		seconds: factory.NewHistogramVec(prometheus.HistogramOpts{
			Name: "grpc_server_handling_seconds", Help: "How long calls took, over gRPC or REST.", Buckets: handlingBuckets,
		}, labels),
		inFlight: factory.NewGaugeVec(prometheus.GaugeOpts{
			Name: "tokend_calls_in_flight", Help: "Calls in progress.",
		}, []string{"transport"}),
		failed: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "tokend_calls_failed_total",
			Help: "Failed calls, and requests refused before they were one, by the reason that the caller got.",
		}, []string{"reason", "transport"}),
	}
	for _, over := range transportNames {
		m.inFlight.WithLabelValues(over)
		for _, method := range service.Methods {
			m.methods = append(m.methods, method.MethodName)
			m.started.WithLabelValues("unary", m.service, method.MethodName, over)
			m.seconds.WithLabelValues("unary", m.service, method.MethodName, over)
			for code := codes.OK; code <= codes.Unauthenticated; code++ {
				m.handled.WithLabelValues("unary", m.service, method.MethodName, over, code.String())
			}
		}
		for reason := range apierror.Reasons() {
			m.failed.WithLabelValues((&apierror.Error{Reason: reason}).ReasonName(), over)
		}
	}
	return m
}

// begin counts a call, and returns the function that counts its end. A method that is not the service's is not counted.
func (m *Metrics) begin(ctx context.Context, fullMethod string) (end func(took time.Duration, code codes.Code)) {
	service, method, _ := strings.Cut(strings.TrimPrefix(fullMethod, "/"), "/")
	if service != m.service || !slices.Contains(m.methods, method) {
		return func(time.Duration, codes.Code) {}
	}
	transport, _ := transportOf(ctx)
	over := transport.String()
	inFlight := m.inFlight.WithLabelValues(over)
	inFlight.Inc()
	m.started.WithLabelValues("unary", service, method, over).Inc()
	return func(took time.Duration, code codes.Code) {
		inFlight.Dec()
		m.handled.WithLabelValues("unary", service, method, over, code.String()).Inc()
		seconds := m.seconds.WithLabelValues("unary", service, method, over)
		id := sampledTrace(ctx)
		if s, ok := seconds.(prometheus.ExemplarObserver); ok && id != "" {
			s.ObserveWithExemplar(took.Seconds(), prometheus.Labels{"trace_id": id})
			return
		}
		seconds.Observe(took.Seconds())
	}
}

// CountFailure counts an error by its reason, also of a request that never became a call.
func (m *Metrics) CountFailure(ctx context.Context, e *apierror.Error) {
	over, _ := transportOf(ctx)
	m.failed.WithLabelValues(e.ReasonName(), over.String()).Inc()
}

// sampledTrace is the id of the call's trace, if that is kept: here, or without spans by its caller.
func sampledTrace(ctx context.Context) string {
	if span := trace.SpanContextFromContext(ctx); span.IsSampled() {
		return span.TraceID().String()
	} else if span.IsValid() {
		return ""
	}
	values := headers.Values(ctx, "traceparent")
	id := callersTraceID(values)
	if id == "" || strings.Trim(id, "0") == "" {
		return ""
	}
	flags := values[0][strings.LastIndexByte(values[0], '-')+1:] // of version 00, the last part
	kept, err := strconv.ParseUint(flags, 16, 8)
	if len(values[0]) != len("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01") || err != nil || kept&1 == 0 {
		return ""
	}
	return id
}
