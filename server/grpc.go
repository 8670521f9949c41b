package server

import (
	"context"
	"crypto/tls"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"

	"github.com/ForstaLabs/ephemeral-token-service/server/chain"
)

// maxStreams is how many calls one HTTP/2 connection may have open, on either listener.
const maxStreams = 100

// grpcOptions are the hardened defaults of the gRPC listener. Streams of health and reflection are let go when ended is done.
func grpcOptions(ended context.Context, cfg Config, intercept grpc.UnaryServerInterceptor, tlsConfig *tls.Config) []grpc.ServerOption {
	opts := []grpc.ServerOption{
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(chain.MaxHeaderBytes),
		grpc.MaxRecvMsgSize(chain.MaxMessageBytes),
		// grpc-go would log the name of any other codec that a caller asks for, and that may be a secret.
		grpc.ForceServerCodecV2(encoding.GetCodecV2(proto.Name)),
		grpc.MaxSendMsgSize(chain.MaxMessageBytes),
		grpc.ConnectionTimeout(10 * time.Second), // TLS and HTTP/2 handshake
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: 15 * time.Minute,
			// Connections end now and then so that clients find replicas that were added since.
			MaxConnectionAge:      cfg.connectionAge,
			MaxConnectionAgeGrace: cfg.CallCeiling + time.Second, // for the last call, and its answer
			Time:                  time.Minute,
			Timeout:               10 * time.Second,
		}),
		// A client may ping every 10 s, also between calls; one that does it faster is disconnected.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.UnknownServiceHandler(chain.UnknownMethod(cfg.Logger)),
		grpc.InTapHandle(tapStream),
		grpc.ChainUnaryInterceptor(messageArrived, onlyCalls(intercept)),
		grpc.ChainStreamInterceptor(endStreams(ended)),
		grpc.WaitForHandlers(true),
	}
	if tlsConfig != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(tlsConfig)))
	}
	return opts
}

// newGRPCServer has the service, and health and reflection beside it: probes and grpcurl have no credential, and both tell
// only what is public.
func newGRPCServer(svc ephemeraltokenv1.EphemeralTokenServiceServer, h healthpb.HealthServer, opts []grpc.ServerOption) *grpc.Server {
	s := grpc.NewServer(opts...)
	ephemeraltokenv1.RegisterEphemeralTokenServiceServer(s, svc)
	healthpb.RegisterHealthServer(s, h)
	reflection.Register(s) // v1 and v1alpha
	return s
}

// onlyCalls runs the service's own calls inside the call chain. Health is outside of it, but for a panic.
func onlyCalls(intercept grpc.UnaryServerInterceptor) grpc.UnaryServerInterceptor {
	own := "/" + ephemeraltokenv1.EphemeralTokenService_ServiceDesc.ServiceName + "/"
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if strings.HasPrefix(info.FullMethod, own) {
			return intercept(ctx, req, info, handler)
		}
		return chain.Recover(ctx, req, info, handler)
	}
}
