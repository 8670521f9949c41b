// Package testutil runs the service with an emulated Atlas and calls it over both transports, for
// the tests of several packages.
package testutil

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/resilient"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// Context returns a context whose deadline is far above what a call takes.
func Context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// Credential returns a new JWT of the first org, as a header.
func Credential(em *emulator.Emulator) []string {
	return []string{"authorization", "JWT " + em.Org(0).JWT()}
}

// WithTTL makes a server cache tokens for ttl.
func WithTTL(ttl time.Duration) func(*server.Config, *atlas.Config) {
	return func(c *server.Config, _ *atlas.Config) { c.Cache = tokencache.Config{TTL: ttl} }
}

// Metrics returns /metrics.
func (s *Service) Metrics(t *testing.T) string {
	t.Helper()
	_, body := s.Get(t, "/metrics")
	return body
}

// NotCalled fails the test if Atlas is called while it runs.
func NotCalled(t *testing.T, em *emulator.Emulator) {
	t.Helper()
	before := em.Calls(emulator.Any)
	t.Cleanup(func() {
		if n := em.Calls(emulator.Any) - before; n != 0 {
			t.Errorf("Atlas was called %d times, want 0", n)
		}
	})
}

// Eventually polls until done, less and less often. It fails the test after 30 seconds.
func Eventually(t *testing.T, done func() bool, otherwise string) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for wait := time.Millisecond; !done(); wait = min(2*wait, 50*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(otherwise)
		}
		<-time.After(wait)
	}
}

// NewResilient wraps a client in retries and limits, with their defaults.
func NewResilient(t testing.TB, client *atlas.Client) *resilient.Client {
	t.Helper()
	c, err := resilient.New(client, resilient.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// processors limits the tests of ParallelWork that run at a time.
var processors = make(chan struct{}, runtime.GOMAXPROCS(0))

// ParallelWork is t.Parallel for a CPU-bound test. At most one of these runs per processor, so that
// its deadlines hold.
func ParallelWork(t *testing.T) {
	t.Helper()
	t.Parallel()
	processors <- struct{}{}
	t.Cleanup(func() { <-processors })
}

// Security is the transport security of the listeners.
type Security string

// The kinds of transport security.
const (
	Plaintext Security = "plaintext"
	ServerTLS Security = "TLS"
	MutualTLS Security = "mTLS"
)

// Service is a running server with its Atlas.
type Service struct {
	*server.Server
	Atlas *emulator.Emulator
	Log   *Buffer
	Certs Certificates
	Mode  Security
	Stop  func() error

	Resilient *resilient.Client // nil if the test sets server.Config.Atlas

	// DialContext connects over the service's network.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Buffer collects log lines.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *Buffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *Buffer) String() string { return l.Since(0) }

// Len returns how much has been written, for Since.
func (l *Buffer) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Len()
}

// Since returns what was written after Len was n.
func (l *Buffer) Since(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b.Bytes()[n:])
}

// Start runs a server with its own emulator until the test ends, after changes to its
// configuration.
func Start(t testing.TB, mode Security, changes ...func(*server.Config, *atlas.Config)) *Service {
	t.Helper()
	em, err := emulator.Start(emulator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	return StartWith(t, mode, em, changes...)
}

// StartWith is Start with this emulator.
func StartWith(t testing.TB, mode Security, em *emulator.Emulator, changes ...func(*server.Config, *atlas.Config)) *Service {
	t.Helper()
	s := &Service{Atlas: em, Mode: mode, DialContext: (&net.Dialer{}).DialContext}
	s.start(t, changes...)
	return s
}

func (s *Service) start(t testing.TB, changes ...func(*server.Config, *atlas.Config)) {
	t.Helper()
	em, mode := s.Atlas, s.Mode
	s.Log = &Buffer{}
	cfg := server.Config{
		GRPCAddr:  "127.0.0.1:0",
		HTTPAddr:  "127.0.0.1:0",
		AdminAddr: "127.0.0.1:0",
		Logger:    slog.New(slog.NewJSONHandler(s.Log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if mode != Plaintext {
		s.Certs = NewCertificates(t)
		cfg.Metrics = prometheus.NewRegistry()
		s.Certs.watch(t, &cfg, mode)
	}
	atlasCfg := atlas.Config{BaseURL: em.URL(), RootCAs: em.CertPool()}
	for _, change := range changes {
		change(&cfg, &atlasCfg)
	}
	if cfg.Atlas == nil {
		client, err := atlas.New(atlasCfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.CloseIdleConnections)
		s.Resilient = NewResilient(t, client)
		cfg.Atlas = s.Resilient
	}
	srv, err := server.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.Server = srv
	ctx, cancel := context.WithCancel(context.Background())
	var stopErr error
	stopped := make(chan struct{})
	go func() {
		stopErr = srv.Run(ctx)
		close(stopped)
	}()
	s.Stop = func() error {
		cancel()
		<-stopped
		return stopErr
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
}

// WantHealth waits until grpc.health.v1 reports a status.
func (s *Service) WantHealth(t *testing.T, want healthpb.HealthCheckResponse_ServingStatus) {
	t.Helper()
	client := healthpb.NewHealthClient(s.GRPCConn(t))
	Eventually(t, func() bool {
		got, err := client.Check(Context(t), &healthpb.HealthCheckRequest{Service: ephemeraltokenv1.EphemeralTokenService_ServiceDesc.ServiceName})
		return err == nil && got.GetStatus() == want
	}, "health is not "+want.String())
}

// Get reads a page of the admin listener.
func (s *Service) Get(t *testing.T, path string) (int, string) {
	t.Helper()
	transport := &http.Transport{DialContext: s.DialContext, DisableCompression: true}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("http://" + s.AdminAddr().String() + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}
