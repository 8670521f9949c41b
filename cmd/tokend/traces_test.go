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

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	tokendmain "github.com/ForstaLabs/ephemeral-token-service/cmd/tokend"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// collector is an OTLP receiver.
type collector struct {
	coltracepb.UnimplementedTraceServiceServer

	url string

	mu       sync.Mutex
	payloads [][]byte          // guarded by mu; of each export
	spans    []*tracepb.Span   // guarded by mu
	resource map[string]string // guarded by mu
	headers  http.Header       // guarded by mu; of the last export
}

func startCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{}
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
	c.add(req, http.Header(md))
	return &coltracepb.ExportTraceServiceResponse{}, nil
}

// serveGRPC makes c a collector over gRPC instead.
func (c *collector) serveGRPC(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	coltracepb.RegisterTraceServiceServer(s, c)
	var served sync.WaitGroup
	served.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() {
		s.Stop()
		served.Wait()
	})
	c.url = "http://" + l.Addr().String()
}

func (c *collector) add(req *coltracepb.ExportTraceServiceRequest, headers http.Header) {
	c.mu.Lock()
	defer c.mu.Unlock()
	payload, _ := proto.Marshal(req) // what was unmarshalled just now
	c.payloads, c.headers = append(c.payloads, payload), headers
	for _, of := range req.GetResourceSpans() {
		c.resource = texts(of.GetResource().GetAttributes())
		for _, scope := range of.GetScopeSpans() {
			c.spans = append(c.spans, scope.GetSpans()...)
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

// find returns the one span that is so.
func (c *collector) find(t *testing.T, what string, so func(*tracepb.Span) bool) *tracepb.Span {
	t.Helper()
	found := slices.DeleteFunc(slices.Clone(c.spans), func(s *tracepb.Span) bool { return !so(s) })
	if len(found) != 1 {
		t.Fatalf("%d spans are %s, of %v", len(found), what, c.spans)
	}
	return found[0]
}

// checkAttributes compares all attributes of a span.
func checkAttributes(t *testing.T, span *tracepb.Span, want map[string]string) {
	t.Helper()
	if got := texts(span.GetAttributes()); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s has\n%v, want\n%v", span.GetName(), got, want)
	}
}

const (
	rpcName   = "forsta.ephemeraltoken.v1.EphemeralTokenService/CreateToken"
	callSpan  = "00f067aa0ba902b7"
	traceFlag = "-01" // sampled
)

// traceOf is the trace id of the nth caller.
func traceOf(n int) string { return fmt.Sprintf("%030x%02x", 0xabc, n) }

func traceparent(n int) string { return "00-" + traceOf(n) + "-" + callSpan + traceFlag }

// TestTraces checks that a trace leads from each caller to the call to Atlas that it caused, and that
// callers that shared the call link to it: over both transports and both protocols of OTLP. It
// contains no secret, nor anything else that a caller sent. Health checks have no span.
func TestTraces(t *testing.T) {
	t.Parallel()
	c := startCollector(t)
	s := invocation{env: []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=" + c.url, "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
		"OTEL_EXPORTER_OTLP_HEADERS=x-collector-key=planted-key", "OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=test",
		"OTEL_BSP_SCHEDULE_DELAY=3600000", // so that all is exported at the stop
	}}.startServe(t, startAtlas(t))
	jwt, token := shareOneCall(t, s)
	s.checkHealth(t)
	s.signal(t, syscall.SIGTERM)
	if code := s.awaitEnd(t); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	checkTrace(t, c, s)
	if got := c.headers.Values("X-Collector-Key"); !slices.Equal(got, []string{"planted-key"}) {
		t.Errorf("the collector's own header: %q", got)
	}
	if c.resource["service.name"] != "tokend" || c.resource["deployment.environment.name"] != "test" {
		t.Errorf("resource: %v", c.resource)
	}
	for _, r := range s.atlas.Requests() {
		if got := r.Header.Get("Tracestate"); got != "" && got != "vendor=value" {
			t.Errorf("Atlas has tracestate %q", got)
		}
	}
	for _, secret := range []string{jwt, token, "planted", "eyJ"} {
		if payload := bytes.Join(c.payloads, nil); bytes.Contains(payload, []byte(secret)) {
			t.Errorf("%q was exported", secret)
		}
		if strings.Contains(s.stderr.String(), secret) {
			t.Errorf("%q was logged", secret)
		}
	}
}

// shareOneCall has a call at Atlas, and two callers share the one after it, one over gRPC and one
// over REST.
func shareOneCall(t *testing.T, s *service) (jwt, token string) {
	t.Helper()
	jwt = s.atlas.Org(0).JWT()
	gate := s.atlas.Hold(emulator.Create)
	t.Cleanup(gate.Release)
	client, rpc := newHTTPClient(t, nil), newRPCClient(t, s.grpc)
	tokens := make(chan string, 3)
	overREST := func(n int) {
		got, _ := do(client, newRequest(t, http.MethodPost, "http://"+s.http+restPath, "", "Authorization", "JWT "+jwt,
			"Traceparent", traceparent(n), "Tracestate", "v=1,planted="+jwt, "Baggage", "planted=1", "X-Request-Id", "planted", "User-Agent", "planted"))
		tokens <- got.token()
	}
	overGRPC := func(n int) {
		resp, _ := rpc.CreateToken(metadata.AppendToOutgoingContext(withJWT(t.Context(), jwt),
			"traceparent", traceparent(n), "tracestate", "vendor=value", "baggage", "planted=1"), &ephemeraltokenv1.CreateTokenRequest{})
		tokens <- resp.GetToken()
	}
	waiting := func(n int) {
		poll(t, "all wait", func() bool {
			return strings.Contains(probe(t, s.admin, "/metrics"), fmt.Sprintf("tokend_cache_creates_waiting %d\n", n))
		})
	}
	go overREST(1)
	if err := gate.Wait(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	go overGRPC(2)
	waiting(2)
	go overREST(3)
	waiting(3)
	gate.Release()
	for range 3 {
		if token = <-tokens; token != s.atlas.Org(0).EphemeralToken() {
			t.Errorf("a caller got %q", token)
		}
	}
	return jwt, token
}

// checkHealth asks for it in every way.
func (s *service) checkHealth(t *testing.T) {
	t.Helper()
	conn, err := grpc.NewClient(s.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", traceparent(9))
	if _, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}); err != nil {
		t.Error(err)
	}
	if got := s.readyz(t); got != "200 ready" {
		t.Error(got)
	}
}

func checkTrace(t *testing.T, c *collector, s *service) {
	t.Helper()
	if len(c.spans) != 7 { // three callers, two calls that they share, and two requests to Atlas
		t.Fatalf("%d spans: %v", len(c.spans), c.spans)
	}
	callers := map[int]*tracepb.Span{}
	for n, want := range map[int]struct{ transport, cache string }{
		1: {"rest", "tokend; fwd=miss"}, 2: {"grpc", "tokend; fwd=miss"}, 3: {"rest", "tokend; fwd=miss; collapsed"},
	} {
		callers[n] = c.find(t, fmt.Sprintf("of caller %d", n), func(s *tracepb.Span) bool {
			return s.GetKind() == tracepb.Span_SPAN_KIND_SERVER && fmt.Sprintf("%x", s.GetTraceId()) == traceOf(n)
		})
		if got := callers[n]; got.GetName() != rpcName || fmt.Sprintf("%x", got.GetParentSpanId()) != callSpan {
			t.Errorf("caller %d: %s below %x", n, got.GetName(), got.GetParentSpanId())
		}
		checkAttributes(t, callers[n], map[string]string{
			"rpc.system.name": "grpc", "rpc.method": rpcName, "rpc.response.status_code": "OK",
			"tokend.transport": want.transport, "tokend.cache": want.cache,
		})
	}
	if got := callers[2].GetTraceState(); got != "vendor=value" {
		t.Errorf("tracestate %q", got)
	}
	alone := c.checkShared(t, s, callers[1], 1)
	shared := c.checkShared(t, s, callers[2], 2)
	checkLinks(t, alone)
	checkLinks(t, shared, callers[3])
	checkLinks(t, callers[1])
	checkLinks(t, callers[2])
	checkLinks(t, callers[3], shared)
}

// checkShared checks the call below its first waiter, and the request to Atlas below that, which
// Atlas was told of.
func (c *collector) checkShared(t *testing.T, s *service, first *tracepb.Span, waiters int) *tracepb.Span {
	t.Helper()
	below := func(parent *tracepb.Span) func(*tracepb.Span) bool {
		return func(s *tracepb.Span) bool {
			return bytes.Equal(s.GetParentSpanId(), parent.GetSpanId()) && bytes.Equal(s.GetTraceId(), parent.GetTraceId())
		}
	}
	shared := c.find(t, "below a caller", below(first))
	if shared.GetName() != "shared CreateToken" || shared.GetKind() != tracepb.Span_SPAN_KIND_INTERNAL {
		t.Errorf("%s, %v", shared.GetName(), shared.GetKind())
	}
	checkAttributes(t, shared, map[string]string{"tokend.waiters": fmt.Sprint(waiters), "tokend.cache": "tokend; fwd=miss"})
	request := c.find(t, "below a shared call", below(shared))
	if request.GetName() != "POST /ephemeral-token" || request.GetKind() != tracepb.Span_SPAN_KIND_CLIENT {
		t.Errorf("%s, %v", request.GetName(), request.GetKind())
	}
	host, port, _ := net.SplitHostPort(strings.TrimSuffix(strings.TrimPrefix(s.atlas.URL(), "https://"), "/v1"))
	checkAttributes(t, request, map[string]string{
		"http.request.method": "POST", "http.response.status_code": "201", "server.address": host, "server.port": port,
		"url.full": s.atlas.URL() + "/ephemeral-token",
	})
	want := fmt.Sprintf("00-%x-%x-01", request.GetTraceId(), request.GetSpanId())
	if !slices.ContainsFunc(s.atlas.Requests(), func(r emulator.Request) bool {
		return r.Header.Get("Traceparent") == want && r.Header.Get("Baggage") == ""
	}) {
		t.Errorf("Atlas was not told of %s", want)
	}
	return shared
}

func checkLinks(t *testing.T, span *tracepb.Span, to ...*tracepb.Span) {
	t.Helper()
	var got, want []string
	for _, link := range span.GetLinks() {
		got = append(got, fmt.Sprintf("%x-%x", link.GetTraceId(), link.GetSpanId()))
	}
	for _, other := range to {
		want = append(want, fmt.Sprintf("%x-%x", other.GetTraceId(), other.GetSpanId()))
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s of %x links to %v, want %v", span.GetName(), span.GetTraceId(), got, want)
	}
}

// TestTraceOfFailure checks that a span names the reason of a failure, and that a call without a
// trace begins one, whose id its log lines have.
func TestTraceOfFailure(t *testing.T) {
	t.Parallel()
	c := startCollector(t)
	s := invocation{env: []string{"OTEL_TRACES_EXPORTER=otlp", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=" + c.url + "/v1/traces", "OTEL_SERVICE_NAME=mine"}}.startServe(t, startAtlas(t))
	jwt := s.atlas.Org(0).JWT()
	s.atlas.Revoke(jwt)
	got, err := do(newHTTPClient(t, nil), newRequest(t, http.MethodPost, "http://"+s.http+restPath, "", "Authorization", "JWT "+jwt))
	if err != nil || got.status != http.StatusUnauthorized {
		t.Fatalf("%v, %+v", err, got)
	}
	s.signal(t, syscall.SIGTERM)
	s.awaitEnd(t)
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, want := range map[string]string{rpcName: "CREDENTIAL_REJECTED", "shared CreateToken": "error status", "POST /ephemeral-token": "401"} {
		span := c.find(t, name, func(s *tracepb.Span) bool { return s.GetName() == name })
		if got := texts(span.GetAttributes())["error.type"]; got != want {
			t.Errorf("%s: error.type %q, want %q", name, got, want)
		}
		if !strings.Contains(s.stderr.String(), fmt.Sprintf(`"trace_id":"%x"`, span.GetTraceId())) {
			t.Errorf("no line of the log has trace %x", span.GetTraceId())
		}
		if len(span.GetEvents()) > 0 || span.GetStatus().GetMessage() != "" {
			t.Errorf("%s tells more: %v", name, span)
		}
	}
	if c.resource["service.name"] != "mine" {
		t.Errorf("resource: %v", c.resource)
	}
}

// No trace is exported where the variables turn traces off. Without any, see TestTracesOff.
func TestTracesDisabled(t *testing.T) {
	t.Parallel()
	for _, off := range []string{"OTEL_SDK_DISABLED=true", "OTEL_TRACES_EXPORTER=none"} {
		t.Run(off, func(t *testing.T) {
			t.Parallel()
			c := startCollector(t)
			s := invocation{env: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + c.url, off}}.startServe(t, startAtlas(t))
			shareOneCall(t, s)
			s.signal(t, syscall.SIGTERM)
			s.awaitEnd(t)
			c.mu.Lock()
			defer c.mu.Unlock()
			if len(c.payloads) > 0 {
				t.Errorf("%d exports", len(c.payloads))
			}
			for _, r := range s.atlas.Requests() {
				if r.Header.Get("Traceparent") != "" {
					t.Errorf("Atlas was told of %q", r.Header.Get("Traceparent"))
				}
			}
		})
	}
}

// TestTraceCollectorGone checks that a collector that does not answer delays no call, delays the stop
// only briefly, and is logged.
func TestTraceCollectorGone(t *testing.T) {
	t.Parallel()
	gone := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "planted", http.StatusForbidden)
	}))
	t.Cleanup(gone.Close)
	s := invocation{env: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + gone.URL, "OTEL_BSP_SCHEDULE_DELAY=10"}}.startServe(t, startAtlas(t))
	shareOneCall(t, s)
	poll(t, "a line in the log", func() bool { return strings.Contains(s.stderr.String(), "traces were not exported") })
	s.signal(t, syscall.SIGTERM)
	if code := s.awaitEnd(t); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if strings.Contains(s.stderr.String(), "planted") {
		t.Error("the collector's answer is in the log")
	}
}

// TestTracesOverGRPC checks that spans reach a collector over gRPC, with its headers.
func TestTracesOverGRPC(t *testing.T) {
	t.Parallel()
	c := &collector{}
	c.serveGRPC(t)
	s := invocation{env: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + c.url, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "OTEL_EXPORTER_OTLP_HEADERS=x-collector-key=planted-key"}}.startServe(t, startAtlas(t))
	if got := rest(t, http.MethodPost, s.http, "Authorization", "JWT "+s.atlas.Org(0).JWT()); got.token() == "" {
		t.Errorf("%+v", got)
	}
	s.signal(t, syscall.SIGTERM)
	s.awaitEnd(t)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.find(t, "of the call", func(s *tracepb.Span) bool { return s.GetName() == rpcName })
	if got := metadata.MD(c.headers).Get("x-collector-key"); !slices.Equal(got, []string{"planted-key"}) || strings.Contains(s.stderr.String(), "planted") {
		t.Errorf("the collector's own header: %q; log:\n%s", got, s.stderr)
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
