package server_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// TestFault70Streams checks that a connection may have four streams of health and reflection beside
// its calls.
func TestFault70Streams(t *testing.T) {
	t.Parallel()
	s := testutil.Start(t, testutil.Plaintext)
	conn := s.GRPCConn(t)
	open, closeAll := context.WithCancel(testutil.Context(t))
	defer closeAll()
	for range 2 {
		watch, err := healthpb.NewHealthClient(conn).Watch(open, &healthpb.HealthCheckRequest{})
		if err == nil {
			_, err = watch.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(open); err != nil { // without a message
			t.Fatal(err)
		}
	}
	testutil.Eventually(t, func() bool { return metric(t, s, "tokend_streams_open") == 4 }, "the four streams are not counted")
	for range 3 {
		watch, err := healthpb.NewHealthClient(conn).Watch(open, &healthpb.HealthCheckRequest{})
		if err == nil {
			_, err = watch.Recv()
		}
		if status.Code(err) != codes.ResourceExhausted {
			t.Errorf("a fifth stream: %v", err)
		}
	}
	if n := metric(t, s, `tokend_calls_refused_total{limit="streams"}`); n != 3 {
		t.Errorf("%v streams are counted as refused, want 3", n)
	}
	testutil.WantCreated.Check(t, testutil.NewGRPCCaller(conn).Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
	other, err := healthpb.NewHealthClient(s.GRPCConn(t)).Watch(open, &healthpb.HealthCheckRequest{})
	if err == nil {
		_, err = other.Recv()
	}
	if err != nil {
		t.Errorf("a stream of another connection: %v", err)
	}
	closeAll()
	testutil.Eventually(t, func() bool { return metric(t, s, "tokend_streams_open") == 0 }, "ended streams are still counted")
}

// TestFault70LongName checks that a health check of a long service name is refused.
func TestFault70LongName(t *testing.T) {
	t.Parallel()
	s := testutil.Start(t, testutil.Plaintext)
	watch, err := healthpb.NewHealthClient(s.GRPCConn(t)).Watch(testutil.Context(t), &healthpb.HealthCheckRequest{Service: strings.Repeat("s", 60<<10)})
	if err == nil {
		_, err = watch.Recv()
	}
	if status.Code(err) != codes.NotFound {
		t.Errorf("a name of 60 KB: %v", err)
	}
}

// TestFault71SharedConnection checks that an oversized header fails its own request only, not the
// others on the connection.
func TestFault71SharedConnection(t *testing.T) {
	t.Parallel()
	for _, mode := range []testutil.Security{testutil.Plaintext, testutil.ServerTLS} {
		for l, want := range map[testutil.Listener]map[uint32]string{
			testutil.GRPC: {1: "200 0", 3: "200 8"},
			testutil.REST: {1: "201 ", 3: "431 "},
		} {
			t.Run(fmt.Sprint(mode, " ", l), func(t *testing.T) {
				testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
					s := v.Start(t, mode)
					s.Atlas.Inject(emulator.Fault{Delay: 300 * time.Millisecond})
					h := s.RawHTTP2(t, l, false)
					h.Framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
					jwt := s.Atlas.Org(0).JWT()
					if err := h.Call(1, jwt); err != nil {
						t.Fatal(err)
					}
					block := h.Headers(jwt, "x-large", strings.Repeat("x", 60<<10))
					_ = h.Framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: block[:16<<10]})
					for block = block[16<<10:]; len(block) > 0; {
						n := min(len(block), 16<<10)
						_ = h.Framer.WriteContinuation(3, n == len(block), block[:n])
						block = block[n:]
					}
					_ = h.Framer.WriteData(3, true, nil)
					if err := h.Flush(); err != nil {
						t.Fatal(err)
					}
					if diff := cmp.Diff(want, statuses(t, h, 2)); diff != "" {
						t.Errorf("statuses by stream (-want +got):\n%s", diff)
					}
				})
			})
		}
	}
}

// statuses returns the HTTP and gRPC statuses of the first streams to end.
func statuses(t *testing.T, h *testutil.RawHTTP2, streams int) map[uint32]string {
	t.Helper()
	_ = h.SetReadDeadline(time.Now().Add(20 * time.Second))
	http, grpc := map[uint32]string{}, map[uint32]string{}
	for ended := 0; ended < streams; {
		frame, err := h.Framer.ReadFrame()
		if err != nil {
			t.Fatalf("the connection closed: %v", err)
		}
		if f, ok := frame.(*http2.MetaHeadersFrame); ok {
			for _, field := range f.Fields {
				switch field.Name {
				case ":status":
					http[f.StreamID] = field.Value
				case "grpc-status":
					grpc[f.StreamID] = field.Value
				}
			}
		}
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			if f.StreamEnded() {
				ended++
			}
		case *http2.DataFrame:
			if f.StreamEnded() {
				ended++
			}
		case *http2.GoAwayFrame:
			t.Fatalf("the server sent GOAWAY: %v", f)
		}
	}
	got := map[uint32]string{}
	for stream, status := range http {
		got[stream] = status + " " + grpc[stream]
	}
	return got
}

// TestFault73AdminPeer checks that probes are answered while one peer opens more connections than
// it may, idle ones or ones with requests that never end.
func TestFault73AdminPeer(t *testing.T) {
	t.Parallel()
	for _, request := range []string{"", "POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n"} {
		s := testutil.Start(t, testutil.Plaintext)
		for range 100 {
			conn, err := net.Dial("tcp", s.AdminAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
			_, _ = io.WriteString(conn, request) // fails if the connection has been closed already
		}
		for range 5 {
			probe := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			resp, err := probe.Get("http://" + s.AdminAddr().String() + "/healthz")
			if err != nil {
				t.Fatalf("beside requests %q: %v", request, err)
			}
			_ = resp.Body.Close()
		}
		if n := metric(t, s, `tokend_connections_refused_total{limit="peer",listener="admin"}`); n < 68 {
			t.Errorf("%v connections were closed at the limit per peer", n)
		}
	}
}

// TestFault92ConnectionAge checks that old REST connections close after a response, over HTTP/1.1
// and HTTP/2.
func TestFault92ConnectionAge(t *testing.T) {
	t.Parallel()
	for _, mode := range []testutil.Security{testutil.Plaintext, testutil.ServerTLS} {
		s := testutil.Start(t, mode, func(c *server.Config, _ *atlas.Config) { c.ConnectionAge = time.Nanosecond })
		for range 2 {
			resp := testutil.RawHTTP(t, s, "POST /v1/ephemeral-token HTTP/1.1\r\nHost: x\r\n\r\n")
			if !resp.Close {
				t.Errorf("%s: HTTP/1.1: the connection stays open", mode)
			}
		}
		h := s.RawHTTP2(t, testutil.REST, false)
		_ = h.Call(1, s.Atlas.Org(0).JWT())
		_ = h.Flush()
		if !receivesGoAway(h) {
			t.Errorf("%s: HTTP/2: no GOAWAY", mode)
		}
		young := testutil.Start(t, mode)
		if resp := testutil.RawHTTP(t, young, "POST /v1/ephemeral-token HTTP/1.1\r\nHost: x\r\n\r\n"); resp.Close {
			t.Errorf("%s: a new connection closes", mode)
		}
	}
}

func receivesGoAway(h *testutil.RawHTTP2) bool {
	_ = h.SetReadDeadline(time.Now().Add(20 * time.Second))
	for {
		frame, err := h.Framer.ReadFrame()
		if err != nil {
			return false
		}
		if _, ok := frame.(*http2.GoAwayFrame); ok {
			return true
		}
	}
}

// TestFault96EmptyBody checks that an empty body is accepted with any type and encoding.
func TestFault96EmptyBody(t *testing.T) {
	t.Parallel()
	s := testutil.Start(t, testutil.Plaintext)
	for _, header := range [][]string{
		{"Content-Type", "application/x-www-form-urlencoded"},
		{"Content-Type", "text/plain; charset=utf-8"},
		{"Content-Type", "multipart/form-data; boundary=x"},
		{"Content-Type", "no type at all"},
		{"Content-Encoding", "identity"},
		{"Content-Encoding", "Identity"},
		{"Content-Encoding", "gzip"},
	} {
		for _, chunked := range []bool{false, true} {
			for verb, want := range map[string]int{"POST": 201, "DELETE": 204} {
				var body io.Reader
				if chunked {
					body = io.MultiReader() // of unknown length
				}
				req, err := http.NewRequestWithContext(testutil.Context(t), verb, "http://"+s.HTTPAddr().String()+"/v1/ephemeral-token", body)
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Authorization", "JWT "+s.Atlas.Org(0).JWT())
				req.Header.Set(header[0], header[1])
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				_ = resp.Body.Close()
				if resp.StatusCode != want {
					t.Errorf("%s with %s, chunked %v: %d, want %d", verb, header, chunked, resp.StatusCode, want)
				}
			}
		}
	}
}

// TestFault97Unread checks that responses that wait for a closed HTTP/2 window are bounded on
// either listener, that other clients are served, and that a refusal needs no window.
func TestFault97Unread(t *testing.T) {
	t.Parallel()
	for _, at := range []struct {
		listener testutil.Listener
		mode     testutil.Security
		name     string
	}{
		{testutil.GRPC, testutil.Plaintext, "gRPC"},
		{testutil.GRPC, testutil.ServerTLS, "gRPC"},
		{testutil.REST, testutil.Plaintext, "HTTP"},
		{testutil.REST, testutil.ServerTLS, "HTTP"},
	} {
		t.Run(fmt.Sprint(at.listener, " ", at.mode), func(t *testing.T) {
			testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
				s := v.Start(t, at.mode, func(c *server.Config, _ *atlas.Config) { c.SetMemory(100 * 3 * 20 << 10) }) // for 100 requests
				if limit := metric(t, s, "tokend_requests_waiting_limit"); limit != 100 {
					t.Fatalf("%v requests may wait, want 100", limit)
				}
				jwt := s.Atlas.Org(0).JWT()
				const conns, streams = 5, 90
				for range conns {
					h := s.RawHTTP2(t, at.listener, true, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
					for i := range uint32(streams) {
						if err := h.Call(2*i+1, jwt); err != nil {
							t.Fatal(err)
						}
					}
					if err := h.Flush(); err != nil {
						t.Fatal(err)
					}
				}
				refused := func() float64 { return metric(t, s, `tokend_calls_refused_total{limit="requests"}`) }
				waiting := func() float64 { return metric(t, s, "tokend_requests_waiting") }
				// Half as many more close the connection that has most.
				closed := func() float64 {
					return metric(t, s, fmt.Sprintf(`tokend_connections_refused_total{limit="requests",listener=%q}`, at.name))
				}
				testutil.Eventually(t, func() bool { return refused() > 0 || closed() > 0 }, "no request is refused")
				testutil.Eventually(t, func() bool { return waiting() <= 101 }, "more requests wait than the limit")
				for name, c := range s.Callers(t) {
					for range 5 {
						if got := c.Call(testutil.Context(t), testutil.Create, "authorization", "JWT "+jwt); got.Token == "" {
							t.Errorf("%s: other clients are not served: %v %s", name, got.Code, got.Reason)
						}
					}
				}
			})
		})
	}
}

// TestDefaultLimits checks that the default limits fit the process's memory.
func TestDefaultLimits(t *testing.T) {
	for _, tc := range []struct {
		mebibytes       int64
		conns, requests int
	}{
		{230, 981, 2048}, // of a container with 256 MiB
		{64, 273, 1092},
		{1, 16, 64},
		{1 << 20, 10_000, 2048},
	} {
		c := server.Config{GRPCAddr: ":1", HTTPAddr: ":2"}
		c.SetMemory(tc.mebibytes << 20)
		c.SetDescriptors(1 << 20)
		if conns, requests := c.Limits(); conns != tc.conns || requests != tc.requests {
			t.Errorf("with %d MiB: %d connections and %d requests, want %d and %d", tc.mebibytes, conns, requests, tc.conns, tc.requests)
		}
	}
}

// TestProbeReset checks that a TCP probe that resets its connection is not a failed handshake.
func TestProbeReset(t *testing.T) {
	t.Parallel()
	s := testutil.Start(t, testutil.ServerTLS)
	for _, addr := range []net.Addr{s.GRPCAddr(), s.HTTPAddr()} {
		for _, first := range []string{"", "\x16\x03\x01"} {
			conn, err := net.Dial("tcp", addr.String())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, first); err != nil {
				t.Fatal(err)
			}
			<-time.After(50 * time.Millisecond) // for the server to read it: a reset throws away what is unread
			_ = conn.(*net.TCPConn).SetLinger(0)
			_ = conn.Close()
		}
	}
	for _, listener := range []string{"gRPC", "HTTP"} {
		series := fmt.Sprintf("tokend_tls_handshake_failures_total{listener=%q}", listener)
		testutil.Eventually(t, func() bool { return metric(t, s, series) == 1 }, series+": the one that had begun is not counted")
		testutil.Eventually(t, func() bool {
			return metric(t, s, fmt.Sprintf("tokend_connections_open{listener=%q}", listener)) == 0
		}, "connections are open")
		if n := metric(t, s, series); n != 1 {
			t.Errorf("%s: %v", series, n)
		}
	}
}
