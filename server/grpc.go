package server

import (
	"context"
	"crypto/tls"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// Limits of both listeners. A request has no fields and a credential is some hundred bytes, so they are tight.
const (
	maxStreams     = 100      // concurrent calls on one HTTP/2 connection
	maxHeaderBytes = 16 << 10 // metadata or headers of one call
	maxBodyBytes   = 64 << 10 // message or body of one call
)

// grpcOptions are the hardened defaults of the gRPC listener.
func grpcOptions(tlsConfig *tls.Config, draining <-chan struct{}, log *slog.Logger) []grpc.ServerOption {
	opts := []grpc.ServerOption{
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.MaxRecvMsgSize(maxWireBytes),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxSendMsgSize(maxBodyBytes),
		grpc.ConnectionTimeout(10 * time.Second), // TLS and HTTP/2 handshake
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: 15 * time.Minute,
			// Connections end now and then so that clients find replicas that were added since.
			MaxConnectionAge:      30 * time.Minute,
			MaxConnectionAgeGrace: 30 * time.Second,
			Time:                  time.Minute,
			Timeout:               10 * time.Second,
		}),
		// A client may ping every 10 s, also between calls; one that does it faster is disconnected.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.UnknownServiceHandler(unknownMethod(log)),
		grpc.InTapHandle(streamTap(draining)),
		grpc.UnaryInterceptor(recoverPanic), // of health; calls have their own chain
		grpc.StreamInterceptor(recoverStream),
		grpc.WaitForHandlers(true),
	}
	if tlsConfig != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(tlsConfig)))
	}
	return opts
}

// unknownMethod answers calls of methods that nobody has. Their names are not logged: somebody may have put a secret there.
func unknownMethod(log *slog.Logger) grpc.StreamHandler {
	observed, info := observe(log, slog.New(slog.DiscardHandler)), &grpc.UnaryServerInfo{FullMethod: "unknown method"}
	return func(_ any, stream grpc.ServerStream) error {
		_, err := observed(stream.Context(), nil, info, func(context.Context, any) (any, error) {
			return nil, &callError{reason: reasonRouteNotFound}
		})
		return err
	}
}

// newGRPCServer registers the service inside the call chain, and health and reflection outside it: probes and grpcurl
// have no credential, and both tell only what is public.
func newGRPCServer(svc ephemeraltokenv1.EphemeralTokenServiceServer, calls grpc.UnaryServerInterceptor, h *healthService, tlsConfig *tls.Config, log *slog.Logger) *grpc.Server {
	s := grpc.NewServer(grpcOptions(tlsConfig, h.draining, log)...)
	ephemeraltokenv1.RegisterEphemeralTokenServiceServer(chained{s, calls}, svc)
	healthpb.RegisterHealthServer(s, h)
	reflection.Register(s) // v1 and v1alpha
	return s
}

// chained registers unary services so that each of their calls runs inside an interceptor, decoding included.
// grpc.ChainUnaryInterceptor runs after a message is decoded, so a malformed one would get an answer that is not of our
// contract and would be on no record.
type chained struct {
	registrar grpc.ServiceRegistrar
	intercept grpc.UnaryServerInterceptor
}

// RegisterService implements grpc.ServiceRegistrar.
func (c chained) RegisterService(desc *grpc.ServiceDesc, impl any) {
	if len(desc.Streams) > 0 {
		panic("server: " + desc.ServiceName + " has a streaming method, which the call chain does not cover")
	}
	wrapped := *desc
	wrapped.Methods = make([]grpc.MethodDesc, len(desc.Methods))
	for i, method := range desc.Methods {
		wrapped.Methods[i] = grpc.MethodDesc{MethodName: method.MethodName, Handler: c.handler(desc.ServiceName, method)}
	}
	c.registrar.RegisterService(&wrapped, impl)
}

func (c chained) handler(service string, method grpc.MethodDesc) grpc.MethodHandler {
	info := &grpc.UnaryServerInfo{FullMethod: "/" + service + "/" + method.MethodName}
	return func(srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		return c.intercept(ctx, nil, info, func(ctx context.Context, _ any) (any, error) {
			return method.Handler(srv, ctx, decodeInbound(ctx, decode), nil)
		})
	}
}
