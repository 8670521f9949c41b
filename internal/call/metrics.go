package call

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
)

// handlingBuckets range from a response out of the cache to the longest call, in seconds.
var handlingBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

// Metrics count and time the calls of one service, under the names of grpc-ecosystem's dashboards.
// All label values are created up front; callers cannot add any.
type Metrics struct {
	started, handled, failed *prometheus.CounterVec
	seconds                  *prometheus.HistogramVec
	inFlight                 *prometheus.GaugeVec

	methods map[methodKey]*methodMetrics
}

type methodKey struct{ fullMethod, transport string }

// methodMetrics are the metrics of one method over one transport, so that a call needs one lookup
// and not one for each metric.
type methodMetrics struct {
	inFlight prometheus.Gauge
	started  prometheus.Counter
	handled  [codes.Unauthenticated + 1]prometheus.Counter // by code
	seconds  prometheus.Observer
}

// NewMetrics makes and registers the metrics of a service.
func NewMetrics(registry prometheus.Registerer, service grpc.ServiceDesc) *Metrics {
	factory := promauto.With(registry)
	labels := []string{"grpc_type", "grpc_service", "grpc_method", "transport"}
	m := &Metrics{
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
			Help: "Failed calls, and requests refused before they became one, by the reason that the caller got.",
		}, []string{"reason", "transport"}),
		methods: map[methodKey]*methodMetrics{},
	}
	for _, transport := range []string{overGRPC, overREST} {
		for _, method := range service.Methods {
			values := []string{"unary", service.ServiceName, method.MethodName, transport}
			counts := &methodMetrics{
				inFlight: m.inFlight.WithLabelValues(transport),
				started:  m.started.WithLabelValues(values...),
				seconds:  m.seconds.WithLabelValues(values...),
			}
			for code := range counts.handled {
				counts.handled[code] = m.handled.WithLabelValues(append(values, codes.Code(code).String())...)
			}
			m.methods[methodKey{"/" + service.ServiceName + "/" + method.MethodName, transport}] = counts
		}
		for reason := range apierror.Reasons() {
			m.failed.WithLabelValues((&apierror.Error{Reason: reason}).ReasonName(), transport)
		}
	}
	return m
}

// begin counts the start of a call and returns the metrics for its end: nil, which counts nothing,
// for a method that is not the service's.
func (m *Metrics) begin(rec *Record, fullMethod string) *methodMetrics {
	counts := m.methods[methodKey{fullMethod, rec.transport()}]
	if counts != nil {
		counts.inFlight.Inc()
		counts.started.Inc()
	}
	return counts
}

// end counts the end of a call.
func (m *methodMetrics) end(ctx context.Context, took time.Duration, code codes.Code) {
	if m == nil {
		return
	}
	m.inFlight.Dec()
	m.handled[code].Inc()
	if span := trace.SpanContextFromContext(ctx); span.IsSampled() {
		m.seconds.(prometheus.ExemplarObserver).ObserveWithExemplar(took.Seconds(), prometheus.Labels{"trace_id": span.TraceID().String()})
		return
	}
	m.seconds.Observe(took.Seconds())
}

// CountFailure counts an error by its reason, also of a request that did not become a call.
func (m *Metrics) CountFailure(ctx context.Context, e *apierror.Error) {
	m.failed.WithLabelValues(e.ReasonName(), RecordFrom(ctx).transport()).Inc()
}
