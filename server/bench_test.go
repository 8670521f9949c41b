package server

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/server/chain"
	"github.com/ForstaLabs/ephemeral-token-service/server/rest"
	"github.com/ForstaLabs/ephemeral-token-service/server/tokencache"
)

// instantAtlas answers at once, so that what is measured is what is around it.
type instantAtlas struct{}

func (instantAtlas) CreateEphemeralToken(context.Context, atlas.JWT) (atlas.Token, error) {
	return "0123456789abcdef0123456789abcdef", nil
}
func (instantAtlas) DeleteEphemeralToken(context.Context, atlas.JWT) error { return nil }

// BenchmarkREST compares what a REST call costs when it becomes a call in this process with what it would cost if the
// gateway dialled the service's own gRPC listener on loopback, as gateways usually do. Both have the same front.
func BenchmarkREST(b *testing.B) {
	cfg := Config{Logger: slog.New(slog.DiscardHandler)}
	cfg.setDefaults()
	cache, err := tokencache.New(instantAtlas{}, tokencache.Config{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(cache.Close)
	svc, intercept := &service{tokens: cache}, chain.New(chain.Config{
		Logger: cfg.Logger, Audit: cfg.Audit, MaxCalls: cfg.MaxCalls, Ceiling: cfg.CallCeiling, Auth: cfg.Auth,
	})

	local, err := rest.NewHandler(svc, intercept, cfg.Logger)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("in-process", func(b *testing.B) { benchmarkREST(b, local) })

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	grpcServer := newGRPCServer(svc, newHealth(), grpcOptions(b.Context(), cfg, intercept, nil))
	go func() { _ = grpcServer.Serve(listener) }()
	b.Cleanup(grpcServer.Stop)
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close() })
	client := dialled{client: ephemeraltokenv1.NewEphemeralTokenServiceClient(conn)}
	direct := func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		return handler(ctx, req)
	}
	loopback, err := rest.NewHandler(client, direct, cfg.Logger)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("loopback", func(b *testing.B) { benchmarkREST(b, loopback) })
}

// dialled is the service at the other end of a connection.
type dialled struct {
	ephemeraltokenv1.UnimplementedEphemeralTokenServiceServer
	client ephemeraltokenv1.EphemeralTokenServiceClient
}

func (d dialled) CreateToken(ctx context.Context, req *ephemeraltokenv1.CreateTokenRequest) (*ephemeraltokenv1.CreateTokenResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	return d.client.CreateToken(metadata.NewOutgoingContext(ctx, md), req)
}

func benchmarkREST(b *testing.B, handler http.Handler) {
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequestWithContext(b.Context(), http.MethodPost, "/v1/ephemeral-token", nil)
		r.Header.Set("Authorization", "JWT a.b.c")
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != http.StatusCreated {
			b.Fatal(w.Code, w.Body)
		}
	}
}
