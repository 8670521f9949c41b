package server

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/server/chain"
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
	cache, err := tokencache.New(tokencache.Config{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(cache.Close)
	svc, calls := &service{atlas: instantAtlas{}, cache: cache}, chain.New(chain.Config{
		Logger: cfg.Logger, Audit: cfg.Audit, MaxCalls: cfg.MaxCalls, Ceiling: cfg.CallCeiling, Auth: cfg.Auth,
	})

	local, err := newRESTHandler(svc, calls, cfg.Logger)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("in-process", func(b *testing.B) { benchmarkREST(b, local) })

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	grpcServer := newGRPCServer(svc, newHealth(), grpcOptions(b.Context(), cfg, calls, nil))
	go func() { _ = grpcServer.Serve(listener) }()
	b.Cleanup(grpcServer.Stop)
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close() })
	mux := runtime.NewServeMux(
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithMetadata(incomingMetadata),
		runtime.WithForwardResponseOption(successStatus),
		runtime.WithWriteContentLength(),
	)
	if err := ephemeraltokenv1.RegisterEphemeralTokenServiceHandler(b.Context(), mux, conn); err != nil {
		b.Fatal(err)
	}
	dialled := &restHandler{routes: serviceRoutes(ephemeraltokenv1.File_forsta_ephemeraltoken_v1_ephemeral_token_proto), gateway: mux, log: cfg.Logger}
	b.Run("loopback", func(b *testing.B) { benchmarkREST(b, dialled) })
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
