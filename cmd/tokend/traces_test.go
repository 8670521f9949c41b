//go:build unix

package main_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	tokendmain "github.com/ForstaLabs/ephemeral-token-service/cmd/tokend"
)

// collector is an OTLP receiver.
type collector struct {
	coltracepb.UnimplementedTraceServiceServer

	url string

	mu       sync.Mutex
	payloads [][]byte                 // guarded by mu; of each export
	spans    map[string]*tracepb.Span // guarded by mu; by name
	resource map[string]string        // guarded by mu
	headers  http.Header              // guarded by mu; of the last export
}

func startCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{spans: map[string]*tracepb.Span{}}
	overHTTP := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		req := &coltracepb.ExportTraceServiceRequest{}
		if err != nil || proto.Unmarshal(body, req) != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("an unreadable export: %s, %v", r.URL.Path, err)
		}
		c.add(req, r.Header)
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(overHTTP.Close)
	c.url = overHTTP.URL
	return c
}

// Export implements the gRPC service of a collector.
func (c *collector) Export(ctx context.Context, req *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	headers := http.Header{}
	for name, values := range md {
		headers[http.CanonicalHeaderKey(name)] = values
	}
	c.add(req, headers)
	return &coltracepb.ExportTraceServiceResponse{}, nil
}

func startGRPCCollector(t *testing.T) *collector {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{url: "http://" + l.Addr().String(), spans: map[string]*tracepb.Span{}}
	s := grpc.NewServer()
	coltracepb.RegisterTraceServiceServer(s, c)
	var served sync.WaitGroup
	served.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() {
		s.Stop()
		served.Wait()
	})
	return c
}

func (c *collector) add(req *coltracepb.ExportTraceServiceRequest, headers http.Header) {
	c.mu.Lock()
	defer c.mu.Unlock()
	payload, _ := proto.Marshal(req) // what was unmarshalled just now
	c.payloads, c.headers = append(c.payloads, payload), headers
	for _, of := range req.GetResourceSpans() {
		c.resource = texts(of.GetResource().GetAttributes())
		for _, scope := range of.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				c.spans[span.GetName()] = span
			}
		}
	}
}

func texts(attributes []*commonpb.KeyValue) map[string]string {
	all := map[string]string{}
	for _, a := range attributes {
		switch v := a.GetValue().GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			all[a.GetKey()] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			all[a.GetKey()] = fmt.Sprint(v.IntValue)
		}
	}
	return all
}

// TestTraces checks over both protocols of OTLP that a trace leads from a caller to the request to
// Atlas, and that it has no secret, nor anything else that the caller sent. Health checks have no
// span.
func TestTraces(t *testing.T) {
	t.Parallel()
	const trace, parent = "0af7651916cd43dd8448eb211c80319c", "00f067aa0ba902b7"
	for protocol, start := range map[string]func(*testing.T) *collector{"http/protobuf": startCollector, "grpc": startGRPCCollector} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			c := start(t)
			s := invocation{env: []string{
				"OTEL_EXPORTER_OTLP_ENDPOINT=" + c.url, "OTEL_EXPORTER_OTLP_PROTOCOL=" + protocol,
				"OTEL_EXPORTER_OTLP_HEADERS=x-collector-key=planted-key", "OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=test",
				"OTEL_BSP_SCHEDULE_DELAY=3600000", // so that all is exported at the stop
			}}.startServe(t, startAtlas(t))
			jwt := s.atlas.Org(0).JWT()
			got := rest(t, http.MethodPost, s.http, "Authorization", "JWT "+jwt, "Traceparent", "00-"+trace+"-"+parent+"-01",
				"Tracestate", "v=1,planted="+jwt, "Baggage", "planted=1", "X-Request-Id", "planted", "User-Agent", "planted")
			if got.token() == "" {
				t.Errorf("%+v", got)
			}
			s.checkHealth(t)
			s.signal(t, syscall.SIGTERM)
			if code := s.awaitEnd(t); code != 0 {
				t.Fatalf("exit status %d", code)
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			below := parent
			for _, name := range []string{"forsta.ephemeraltoken.v1.EphemeralTokenService/CreateToken", "shared CreateToken", "POST /ephemeral-token"} {
				span := c.spans[name]
				if fmt.Sprintf("%x", span.GetTraceId()) != trace || fmt.Sprintf("%x", span.GetParentSpanId()) != below {
					t.Errorf("%s is not below %s of the trace: %v", name, below, c.spans)
				}
				below = fmt.Sprintf("%x", span.GetSpanId())
			}
			if len(c.spans) != 3 {
				t.Errorf("%d spans, want 3: %v", len(c.spans), c.spans)
			}
			if sent := s.atlas.LastRequest().Header; sent.Get("Traceparent") != "00-"+trace+"-"+below+"-01" || sent.Get("Tracestate") != "" || sent.Get("Baggage") != "" {
				t.Errorf("Atlas has %v", sent)
			}
			if got := c.headers.Values("X-Collector-Key"); !slices.Equal(got, []string{"planted-key"}) {
				t.Errorf("the collector's own header: %q", got)
			}
			if c.resource["service.name"] != "tokend" || c.resource["deployment.environment.name"] != "test" {
				t.Errorf("resource: %v", c.resource)
			}
			for _, secret := range []string{jwt, got.token(), "planted", "eyJ"} {
				if bytes.Contains(bytes.Join(c.payloads, nil), []byte(secret)) {
					t.Errorf("%q was exported", secret)
				}
				if strings.Contains(s.stderr.String(), secret) {
					t.Errorf("%q was logged", secret)
				}
			}
		})
	}
}

// checkHealth asks for it in every way.
func (s *service) checkHealth(t *testing.T) {
	t.Helper()
	conn, err := grpc.NewClient(s.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
		t.Error(err)
	}
	if got := s.readyz(t); got != "200 ready" {
		t.Error(got)
	}
}

// TestTraceOfFailure checks that the spans name the reason of a failure, and that a call without a
// trace begins one, whose id its log lines have.
func TestTraceOfFailure(t *testing.T) {
	t.Parallel()
	c := startCollector(t)
	s := invocation{env: []string{"OTEL_TRACES_EXPORTER=otlp", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=" + c.url + "/v1/traces", "OTEL_SERVICE_NAME=mine"}}.startServe(t, startAtlas(t))
	jwt := s.atlas.Org(0).JWT()
	s.atlas.Revoke(jwt)
	if got := rest(t, http.MethodPost, s.http, "Authorization", "JWT "+jwt); got.status != http.StatusUnauthorized {
		t.Fatalf("%+v", got)
	}
	s.signal(t, syscall.SIGTERM)
	s.awaitEnd(t)
	c.mu.Lock()
	defer c.mu.Unlock()
	span := c.spans["shared CreateToken"]
	if got := texts(span.GetAttributes()); got["error.type"] != "error status" || got["tokend.waiters"] != "1" {
		t.Errorf("the shared call has %v", got)
	}
	if !strings.Contains(s.stderr.String(), fmt.Sprintf(`"trace_id":"%x"`, span.GetTraceId())) {
		t.Errorf("no line of the log has trace %x", span.GetTraceId())
	}
	if c.resource["service.name"] != "mine" {
		t.Errorf("resource: %v", c.resource)
	}
}

// TestTraceCollectorGone checks that a collector that does not answer delays no call, delays the
// stop only briefly, and is logged.
func TestTraceCollectorGone(t *testing.T) {
	t.Parallel()
	gone := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "planted", http.StatusForbidden)
	}))
	t.Cleanup(gone.Close)
	s := invocation{env: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + gone.URL, "OTEL_BSP_SCHEDULE_DELAY=10"}}.startServe(t, startAtlas(t))
	if got := rest(t, http.MethodPost, s.http, "Authorization", "JWT "+s.atlas.Org(0).JWT()); got.token() == "" {
		t.Errorf("%+v", got)
	}
	poll(t, "a line in the log", func() bool { return strings.Contains(s.stderr.String(), "traces were not exported") })
	s.signal(t, syscall.SIGTERM)
	if code := s.awaitEnd(t); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if strings.Contains(s.stderr.String(), "planted") {
		t.Error("the collector's answer is in the log")
	}
}

// TestTraceSettings checks which exporter the variables choose, and that those of the signal go
// before the general ones.
func TestTraceSettings(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		env  []string
		want string // in the output
		code int
	}{
		"none":     {nil, "", 0},
		"disabled": {[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317", "OTEL_SDK_DISABLED=true"}, "", 0},
		"off":      {[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317", "OTEL_TRACES_EXPORTER=none"}, "", 0},
		"exporter": {[]string{"OTEL_TRACES_EXPORTER=otlp"}, "Traces go to this machine over OTLP (http/protobuf).", 0},
		"grpc":     {[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"}, "Traces go to collector:4317 over OTLP (grpc).", 0},
		"signal first": {[]string{
			"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317", "OTEL_EXPORTER_OTLP_PROTOCOL=planted",
			"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://127.0.0.1:4318/v1/traces", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf",
		}, "Traces go to 127.0.0.1:4318 over OTLP (http/protobuf).", 0},
		"a secret":       {[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://planted:planted@collector:4318/planted"}, "Traces go to collector:4318 ", 0},
		"other exporter": {[]string{"OTEL_TRACES_EXPORTER=jaeger"}, "OTEL_TRACES_EXPORTER: must be otlp or none", 64},
		"other protocol": {[]string{"OTEL_TRACES_EXPORTER=otlp", "OTEL_EXPORTER_OTLP_PROTOCOL=http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL: must be grpc or http/protobuf", 64},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := &process{stdout: newOutput(), stderr: newOutput()}
			code := tokendmain.Execute(t.Context(), []string{"config"}, test.env, p.stdout, p.stderr)
			out := p.stdout.String() + p.stderr.String()
			if code != test.code || !strings.Contains(out, test.want) || test.want == "" && strings.Contains(out, "Traces") || strings.Contains(out, "planted") {
				t.Errorf("exit status %d, want %q:\n%s", code, test.want, out)
			}
		})
	}
}
