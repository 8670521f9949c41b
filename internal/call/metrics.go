package call

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
	"github.com/ForstaLabs/ephemeral-token-service/internal/headers"
)

// handlingBuckets reach from an answer out of memory to the ceiling of a call, in seconds.
var handlingBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

// maxCode is the last of gRPC's codes.
const maxCode = codes.Unauthenticated

// Metrics count and time the calls of one service, by names that gRPC's usual dashboards know. All that can be counted is
// there from the start, so that nothing a caller sends makes a label, and a call looks nothing up but its method: the
// provider of go-grpc-middleware has the same names, and puts its labels together anew for each call: 15 allocations (v1.1.1).
type Metrics struct {
	started, handled, failed *prometheus.CounterVec
	seconds                  *prometheus.HistogramVec
	inFlight                 *prometheus.GaugeVec

	methods map[string]*[len(transportNames)]methodMetrics // by full name
	reasons map[apierror.Reason]*[len(transportNames)]prometheus.Counter
}

// methodMetrics are those of one method over one transport.
type methodMetrics struct {
	started  prometheus.Counter
	handled  [maxCode + 1]prometheus.Counter
	seconds  prometheus.Observer
	inFlight prometheus.Gauge // of all methods over this transport
}

// NewMetrics makes the metrics of a service. They are a prometheus.Collector to be registered.
func NewMetrics(service grpc.ServiceDesc) *Metrics {
	labels := []string{"grpc_type", "grpc_service", "grpc_method", "transport"}
	m := &Metrics{
		started: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "grpc_server_started_total", Help: "Calls that have begun, over gRPC or REST.",
		}, labels),
		handled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "grpc_server_handled_total", Help: "Calls that have ended, over gRPC or REST, by code.",
		}, append(labels, "grpc_code")),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "grpc_server_handling_seconds", Help: "How long calls took, over gRPC or REST.", Buckets: handlingBuckets,
		}, labels),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "tokend_calls_in_flight", Help: "Calls in progress.",
		}, []string{"transport"}),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokend_calls_failed_total",
			Help: "Failed calls, and requests refused before they were one, by the reason that the caller was told.",
		}, []string{"reason", "transport"}),
		methods: map[string]*[len(transportNames)]methodMetrics{},
		reasons: map[apierror.Reason]*[len(transportNames)]prometheus.Counter{},
	}
	for _, method := range service.Methods {
		known := &[len(transportNames)]methodMetrics{}
		for over, name := range transportNames {
			known[over] = m.resolve("unary", service.ServiceName, method.MethodName, name)
		}
		m.methods["/"+service.ServiceName+"/"+method.MethodName] = known
	}
	for reason := range apierror.Reasons() {
		known := &[len(transportNames)]prometheus.Counter{}
		for over, name := range transportNames {
			known[over] = m.failed.WithLabelValues((&apierror.Error{Reason: reason}).ReasonName(), name)
		}
		m.reasons[reason] = known
	}
	return m
}

func (m *Metrics) resolve(kind, service, method, transport string) methodMetrics {
	r := methodMetrics{
		started:  m.started.WithLabelValues(kind, service, method, transport),
		seconds:  m.seconds.WithLabelValues(kind, service, method, transport),
		inFlight: m.inFlight.WithLabelValues(transport),
	}
	for code := range r.handled {
		r.handled[code] = m.handled.WithLabelValues(kind, service, method, transport, codes.Code(code).String())
	}
	return r
}

// begin counts a call, which end ends. A method that is not the service's is nil, and not counted.
func (m *Metrics) begin(ctx context.Context, method string) *methodMetrics {
	known := m.methods[method]
	if known == nil {
		return nil
	}
	over, _ := transportOf(ctx)
	call := &known[over]
	call.started.Inc()
	call.inFlight.Inc()
	return call
}

func (c *methodMetrics) end(ctx context.Context, took time.Duration, code codes.Code) {
	if c == nil {
		return
	}
	c.inFlight.Dec()
	c.handled[min(code, maxCode)].Inc()
	if id := sampledTrace(ctx); id != "" {
		if s, ok := c.seconds.(prometheus.ExemplarObserver); ok {
			s.ObserveWithExemplar(took.Seconds(), prometheus.Labels{"trace_id": id})
			return
		}
	}
	c.seconds.Observe(took.Seconds())
}

// CountFailure counts what a caller was told, also of a request that never became a call.
func (m *Metrics) CountFailure(ctx context.Context, e *apierror.Error) {
	if known := m.reasons[e.Reason]; known != nil {
		over, _ := transportOf(ctx)
		known[over].Inc()
	}
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

// collectors are all of the metrics.
func (m *Metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.started, m.handled, m.seconds, m.inFlight, m.failed}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.collectors() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.collectors() {
		c.Collect(ch)
	}
}
