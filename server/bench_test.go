package server

import (
	"context"
	"encoding/base64"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/metadata"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/call"
	"github.com/ForstaLabs/ephemeral-token-service/internal/listen"
	"github.com/ForstaLabs/ephemeral-token-service/internal/rest"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
)

var benchMetrics = call.NewMetrics(prometheus.NewRegistry(), ephemeraltokenv1.EphemeralTokenService_ServiceDesc)

// instantAtlas answers at once, so that its latency is not measured.
type instantAtlas struct{}

func (instantAtlas) CreateEphemeralToken(context.Context, atlas.JWT) (atlas.Token, error) {
	return "0123456789abcdef0123456789abcdef", nil
}
func (instantAtlas) DeleteEphemeralToken(context.Context, atlas.JWT) error { return nil }

// BenchmarkCreate measures creates over both transports, cached and uncached. gRPC includes its
// client; REST is without a connection.
func BenchmarkCreate(b *testing.B) {
	for name, cacheConfig := range map[string]tokencache.Config{"remembered": {TTL: time.Hour}, "unshared": {}} {
		for transport, call := range benchCalls(b, cacheConfig) {
			b.Run(name+"/"+transport, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					call()
				}
			})
		}
	}
}

// benchCalls returns a function per transport that makes one call. All use the same credential.
func benchCalls(tb testing.TB, cacheConfig tokencache.Config) map[string]func() {
	tb.Helper()
	svc, intercept, cfg := benchService(tb, cacheConfig)
	admit := func(context.Context) (refuse, brief bool) { return false, false }
	handler, err := rest.NewHandler(rest.Config{Service: svc, Intercept: intercept, Logger: cfg.Logger, Metrics: benchMetrics, Overloaded: admit})
	if err != nil {
		tb.Fatal(err)
	}
	client := benchClient(tb, svc, intercept, cfg)
	claims := base64.RawURLEncoding.EncodeToString([]byte(`{"org_id":"46a6a86f-96ee-4fa1-a67d-9d7461fd9fe1"}`))
	credential := "JWT e30." + claims + ".c"
	return map[string]func(){
		"gRPC": func() {
			ctx := metadata.AppendToOutgoingContext(tb.Context(), auth.Header, credential)
			var header metadata.MD
			if _, err := client.CreateToken(ctx, &ephemeraltokenv1.CreateTokenRequest{}, grpc.Header(&header)); err != nil {
				tb.Fatal(err)
			}
			if len(header.Get(cacheStatusHeader)) != 1 {
				tb.Fatal(header)
			}
		},
		"REST": func() {
			r := httptest.NewRequestWithContext(tb.Context(), http.MethodPost, "/v1/ephemeral-token", nil)
			r.Header.Set("Authorization", credential)
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			if w.Code != http.StatusCreated {
				tb.Fatal(w.Code, w.Body)
			}
		},
	}
}

// benchService returns a service whose Atlas answers at once, and its interceptor chain.
func benchService(tb testing.TB, cacheConfig tokencache.Config) (*service, grpc.UnaryServerInterceptor, Config) {
	tb.Helper()
	cfg := Config{Logger: slog.New(slog.DiscardHandler), CallerRate: 1 << 30} // enabled, but refuses nothing
	cfg.setDefaults()
	cache, err := tokencache.New(instantAtlas{}, cacheConfig)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(cache.Close)
	return &service{tokens: cache}, call.New(call.Config{
		Logger: cfg.Logger, Audit: cfg.Audit, MaxCalls: cfg.MaxCalls, Ceiling: cfg.CallCeiling, Auth: cfg.Auth,
		CallerRate: cfg.CallerRate, Refused: func(string) {}, Metrics: benchMetrics,
	}), cfg
}

// benchGuard returns a guard that counts nothing.
func benchGuard(tb testing.TB, cfg Config) *streams {
	tb.Helper()
	return &streams{refuse: call.NewRefusal(cfg.Logger, benchMetrics), refused: func(string) {}, ended: tb.Context()}
}

// benchClient calls svc over loopback.
func benchClient(tb testing.TB, svc *service, intercept grpc.UnaryServerInterceptor, cfg Config) ephemeraltokenv1.EphemeralTokenServiceClient {
	tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	guard := benchGuard(tb, cfg)
	grpcServer := newGRPCServer(guard, svc, intercept, health.NewServer(), grpcOptions(cfg, guard, nil))
	go func() {
		_ = grpcServer.Serve(listen.Track(listener, listen.Limits{Requests: listen.NewRequests(mostRequests)}))
	}()
	tb.Cleanup(grpcServer.Stop)
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	return ephemeraltokenv1.NewEphemeralTokenServiceClient(conn)
}
