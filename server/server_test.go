package server_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

func TestMain(m *testing.M) { testutil.Main(m) }

// TestLifeOfAToken creates and deletes tokens over each transport.
func TestLifeOfAToken(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		jwt := testutil.Credential(s.Atlas)
		first := c.Call(testutil.Context(t), testutil.Create, jwt...)
		testutil.WantCreated.Check(t, first)
		if first.Token == "" || first.Token != s.Atlas.Org(0).EphemeralToken() {
			t.Error("the token is not Atlas's token of the org")
		}
		if again := c.Call(testutil.Context(t), testutil.Create, jwt...); again.Token != first.Token {
			t.Error("a second create gave another token")
		}
		if other := c.Call(testutil.Context(t), testutil.Create, "authorization", "JWT "+s.Atlas.Org(1).JWT()); other.Token == first.Token {
			t.Error("another org got the same token")
		}
		deleted := c.Call(testutil.Context(t), testutil.Delete, jwt...)
		testutil.WantDeleted.Check(t, deleted)
		if deleted.Body != "" || deleted.Get("content-type") == "application/json" {
			t.Errorf("the answer to a delete has a body %q or type %q", deleted.Body, deleted.Get("content-type"))
		}
		if s.Atlas.Org(0).EphemeralToken() != "" {
			t.Error("Atlas still has the token")
		}
		if next := c.Call(testutil.Context(t), testutil.Create, jwt...); next.Token == first.Token || next.Token == "" {
			t.Error("a create after a delete did not give a new token")
		}
	})
}

// TestRESTHeaders checks the allow-lists of headers to Atlas and back.
func TestRESTHeaders(t *testing.T) {
	t.Parallel()
	s := testutil.Start(t, testutil.Plaintext)
	got := s.RESTCaller(t).Call(testutil.Context(t), testutil.Create, append(testutil.Credential(s.Atlas), "Cookie", "a=b", "X-Api-Key", "k", "Grpc-Metadata-X", "y", "X-Request-Id", "req-1")...)
	testutil.WantCreated.Check(t, got)
	names := slices.Sorted(maps.Keys(got.Header))
	if diff := cmp.Diff([]string{"cache-control", "cache-status", "content-length", "content-type", "date", "x-content-type-options", "x-request-id"}, names); diff != "" {
		t.Errorf("response headers (-want +got):\n%s", diff)
	}
	t.Run("of an error", func(t *testing.T) {
		defer s.Atlas.Inject(emulator.Fault{Status: 503})()
		got := s.RESTCaller(t).Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...)
		names := slices.Sorted(maps.Keys(got.Header))
		if diff := cmp.Diff([]string{"cache-control", "cache-status", "content-length", "content-type", "date", "retry-after", "x-content-type-options", "x-request-id"}, names); diff != "" {
			t.Errorf("response headers (-want +got):\n%s", diff)
		}
	})
	if got.Get("content-type") != "application/json" {
		t.Errorf("Content-Type is %q", got.Get("content-type"))
	}
	var sent []string
	for name := range s.Atlas.LastRequest().Header {
		sent = append(sent, name)
	}
	slices.Sort(sent)
	if diff := cmp.Diff([]string{"Accept", "Accept-Encoding", "Authorization", "Content-Length", "Content-Type", "User-Agent"}, sent); diff != "" {
		t.Errorf("headers that Atlas got (-want +got):\n%s", diff)
	}
}

// TestLogLevel checks that level warn logs what an operator must look at, and not callers'
// mistakes.
func TestLogLevel(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		fault   emulator.Fault
		headers []string // in place of a good credential
		want    string
	}{
		{"wrong URL", emulator.Fault{On: emulator.Create, Status: 404}, nil, `"level":"ERROR","msg":"call failed"`},
		{"redirect", emulator.Fault{On: emulator.Create, Status: 302}, nil, `"level":"ERROR","msg":"call failed"`},
		{"no JSON", emulator.Fault{On: emulator.Create, Body: "<html>"}, nil, `"level":"ERROR","msg":"call failed"`},
		{"Atlas fails", emulator.Fault{On: emulator.Create, Status: 503}, nil, `"level":"WARN","msg":"call failed"`},
		{"refused by Atlas", emulator.Fault{On: emulator.Create, Status: 403}, nil, ""},
		{"no credential", emulator.Fault{}, []string{"x-a", "b"}, ""},
		{"headers too large", emulator.Fault{}, []string{"x-large", strings.Repeat("x", 16<<10)}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			log := &testutil.Buffer{}
			s := testutil.Start(t, testutil.Plaintext, func(c *server.Config, _ *atlas.Config) {
				c.Logger = slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelWarn}))
			})
			headers := tc.headers
			if headers == nil {
				headers = testutil.Credential(s.Atlas)
				defer s.Atlas.Inject(tc.fault)()
			}
			if got := s.RESTCaller(t).Call(testutil.Context(t), testutil.Create, headers...); got.Code == codes.OK {
				t.Fatal("the call succeeded")
			}
			_ = s.Stop() // then every line is written
			if got := log.String(); tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
				t.Errorf("at level warn the log has %q, want %q", got, tc.want)
			}
		})
	}
}

// TestTLSVersions checks that TLS 1.1 is refused.
func TestTLSVersions(t *testing.T) {
	t.Parallel()
	s := testutil.Start(t, testutil.MutualTLS)
	testutil.NotCalled(t, s.Atlas)
	for _, addr := range []net.Addr{s.GRPCAddr(), s.HTTPAddr()} {
		cfg := s.ClientTLS()
		cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		if conn, err := tls.Dial("tcp", addr.String(), cfg); err == nil {
			_ = conn.Close()
			t.Errorf("%s accepts TLS 1.1", addr)
		}
	}
}

// TestHTTP1OnGRPCPort checks that a client that speaks HTTP/1.1 to the gRPC port gets a text that
// names the REST address: without TLS, with TLS, and without TLS where TLS is required.
func TestHTTP1OnGRPCPort(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		mode   testutil.Security
		scheme string
		rest   string
	}{
		{testutil.Plaintext, "http", "http"},
		{testutil.ServerTLS, "https", "https"},
		{testutil.ServerTLS, "http", "https"},
	} {
		s := testutil.Start(t, tc.mode)
		want := "This port speaks gRPC (HTTP/2); REST is on " + tc.rest + "://" + s.HTTPAddr().String() + ".\n"
		for name, protocols := range map[string][]string{"no ALPN": nil, "ALPN": {"http/1.1"}} {
			cfg := s.Certs.ClientConfig(testutil.ServerTLS)
			cfg.NextProtos = protocols
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}}
			body := strings.NewReader(strings.Repeat("x", 32<<10))
			req, err := http.NewRequestWithContext(testutil.Context(t), http.MethodPost, tc.scheme+"://"+s.GRPCAddr().String()+testutil.ServicePath, body)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Errorf("%s, %s on %s: %v", name, tc.scheme, tc.mode, err)
				continue
			}
			got, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusBadRequest || string(got) != want || err != nil {
				t.Errorf("%s, %s on %s: %s, %q, %v, want %q", name, tc.scheme, tc.mode, resp.Status, got, err, want)
			}
		}
		testutil.WantCreated.Check(t, s.GRPCCaller(t).Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
	}
	off := testutil.Start(t, testutil.Plaintext, func(c *server.Config, _ *atlas.Config) { c.HTTPAddr = "" })
	conn := off.Dial(t, testutil.GRPC)
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\n\r\n")
	if got, _ := io.ReadAll(conn); !strings.HasSuffix(string(got), "REST is off.\n") {
		t.Errorf("without REST: %q", got)
	}
}

func TestHealthAndReflection(t *testing.T) {
	t.Parallel()
	s := testutil.Start(t, testutil.MutualTLS)
	conn := s.GRPCConn(t)
	for _, name := range []string{"", "forsta.ephemeraltoken.v1.EphemeralTokenService"} {
		resp, err := healthpb.NewHealthClient(conn).Check(testutil.Context(t), &healthpb.HealthCheckRequest{Service: name})
		if err != nil || resp.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("health of %q: %v, %v", name, resp.GetStatus(), err)
		}
	}
	v1, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(testutil.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := v1.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	resp, err := v1.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, service := range resp.GetListServicesResponse().GetService() {
		names = append(names, service.GetName())
	}
	if !slices.Contains(names, "forsta.ephemeraltoken.v1.EphemeralTokenService") {
		t.Errorf("reflection lists %v", names)
	}
	_ = v1.CloseSend()
}

func TestValidate(t *testing.T) {
	t.Parallel()
	certificate := func() tls.Certificate { return tls.Certificate{} }
	authorities := x509.NewCertPool
	good := server.Config{HTTPAddr: "127.0.0.1:0", Atlas: &atlas.Client{}}
	if err := good.Validate(); err != nil {
		t.Fatalf("a good configuration: %v", err)
	}
	for name, tc := range map[string]struct {
		change func(*server.Config)
		want   string
	}{
		"nothing to serve":          {func(c *server.Config) { c.HTTPAddr = "" }, "nothing to call"},
		"no Atlas":                  {func(c *server.Config) { c.Atlas = nil }, "Atlas: "},
		"every interface":           {func(c *server.Config) { c.HTTPAddr = ":8080" }, "without TLS"},
		"unspecified":               {func(c *server.Config) { c.GRPCAddr = "0.0.0.0:9090" }, "without TLS"},
		"unspecified IPv6":          {func(c *server.Config) { c.GRPCAddr = "[::]:9090" }, "without TLS"},
		"a name":                    {func(c *server.Config) { c.GRPCAddr = "tokend.internal:9090" }, "without TLS"},
		"no port":                   {func(c *server.Config) { c.HTTPAddr = "127.0.0.1" }, "host:port"},
		"port out of range":         {func(c *server.Config) { c.AdminAddr = "127.0.0.1:70000" }, "0 to 65535"},
		"a socket file for REST":    {func(c *server.Config) { c.HTTPAddr = "unix:/run/x" }, "host:port"},
		"client CA without the two": {func(c *server.Config) { c.TLS.ClientCAs = authorities }, "TLS: "},
		"TLS and plaintext":         {func(c *server.Config) { c.Plaintext, c.TLS.Certificate = true, certificate }, "Plaintext: "},
		"negative":                  {func(c *server.Config) { c.DrainTimeout = -1 }, "DrainTimeout: -1ns: must not be negative"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good
			tc.change(&cfg)
			err := cfg.Validate()
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if srv, err := server.New(cfg); err == nil {
				srv.Close()
				t.Error("New accepts it")
			}
		})
	}
	t.Run("all at once", func(t *testing.T) {
		err := server.Config{GRPCAddr: "0.0.0.0:1", HTTPAddr: "x", DrainTimeout: -1}.Validate()
		if n := len(strings.Split(err.Error(), "\n")); n != 4 {
			t.Errorf("%d mistakes, want 4:\n%v", n, err)
		}
	})
}

// TestUnixSocket checks that the socket file of a killed process is replaced, that a socket in use
// and a regular file are not, and that the socket file is removed at the end.
func TestUnixSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	refused := func() {
		t.Helper()
		if _, err := server.New(server.Config{GRPCAddr: "unix:" + path, Atlas: &atlas.Client{}}); err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("got %v, want an error that says so", err)
		}
	}
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false) // as after a kill
	_ = stale.Close()
	s := testutil.Start(t, testutil.Plaintext, func(c *server.Config, _ *atlas.Config) { c.GRPCAddr = "unix:" + path })
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	testutil.WantCreated.Check(t, testutil.NewGRPCCaller(conn).Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
	refused()
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket file is left behind: %v", err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused()
	if content, err := os.ReadFile(path); err != nil || string(content) != "precious" {
		t.Errorf("the file is now %q, %v", content, err)
	}
}

// TestHeadersAloneTakeNoSlot checks that streams without a message do not count as calls in
// progress.
func TestHeadersAloneTakeNoSlot(t *testing.T) {
	t.Parallel()
	s := testutil.Start(t, testutil.Plaintext, func(c *server.Config, _ *atlas.Config) { c.MaxCalls = 4 })
	for range 3 {
		testutil.OpenRawStreams(t, s, 100, testutil.CreateMethod, "authorization", testutil.Credential(s.Atlas)[1])
	}
	callers := s.Callers(t)
	for range 20 {
		for _, c := range callers {
			testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
		}
	}
}

// TestFault98MessageTimeout checks that a call without a message is refused after eight seconds
// with a code that its client may retry.
func TestFault98MessageTimeout(t *testing.T) {
	for _, method := range []string{testutil.CreateMethod, healthpb.Health_Check_FullMethodName, healthpb.Health_Watch_FullMethodName} {
		testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
			s := v.Start(t, testutil.Plaintext)
			testutil.NotCalled(t, s.Atlas)
			start := time.Now()
			if got := testutil.RawGRPCMessage(t, s, method, false, "authorization", testutil.Credential(s.Atlas)[1]); got != "8" {
				t.Errorf("%s: the server answered %q, want 8 (RESOURCE_EXHAUSTED)", method, got)
			}
			if took := time.Since(start).Round(time.Second); took != 8*time.Second {
				t.Errorf("%s: it took %v, want 8 s", method, took)
			}
			if n := metric(t, s, `tokend_calls_failed_total{reason="OVERLOADED",transport="grpc"}`); n != 1 {
				t.Errorf("%s: %v calls are counted", method, n)
			}
		})
	}
}
