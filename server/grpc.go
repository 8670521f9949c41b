package server

import (
	"context"
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

	"github.com/ForstaLabs/ephemeral-token-service/internal/call"
)

// maxStreams is how many calls one HTTP/2 connection may have open, on either listener.
const maxStreams = 100

// A connection on which no frame becomes whole for keepaliveTime is pinged, and closed if that is not answered within
// keepaliveTimeout. That ends the dead, and those who send a frame or a header block byte by byte: nothing else has a limit of
// time for them. It takes a few seconds, and not a minute, so that whoever sends slowly is gone in ten.
const (
	keepaliveTime    = 4 * time.Second
	keepaliveTimeout = 5 * time.Second
)

// streamWorkers is how many goroutines wait for calls. A new one for each call would begin with a small stack, and copy it to a larger
// one several times on the call's way through the chain: that is a tenth of the CPU of a call. Calls beyond these get a new one.
const streamWorkers = 64

// grpcOptions are the hardened defaults of the gRPC listener. Streams of health and reflection are let go when ended is done.
func grpcOptions(ended context.Context, cfg Config, intercept grpc.UnaryServerInterceptor, metrics *call.Metrics, creds credentials.TransportCredentials) []grpc.ServerOption {
	opts := []grpc.ServerOption{
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.MaxHeaderListSize(call.MaxHeaderBytes),
		grpc.MaxRecvMsgSize(call.MaxMessageBytes),
		// grpc-go would log the name of any other codec that a caller asks for, and that may be a secret.
		grpc.ForceServerCodecV2(encoding.GetCodecV2(proto.Name)),
		grpc.MaxSendMsgSize(call.MaxMessageBytes),
		grpc.ConnectionTimeout(8 * time.Second), // TLS and HTTP/2 handshake
		// Answers are small, and connections may be many. The buffer for reading has room for a frame that is a little too large: what is
		// left unread of it makes TCP reset the connection before the client has read why.
		grpc.WriteBufferSize(4 << 10),
		grpc.ReadBufferSize(18 << 10), // a size class of Go's allocator
		// grpc-go would make them larger by itself, up to 16 MiB.
		grpc.StaticStreamWindowSize(call.MaxMessageBytes),
		grpc.StaticConnWindowSize(4 * call.MaxMessageBytes),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: 15 * time.Minute,
			// Connections end now and then so that clients find replicas that were added since.
			MaxConnectionAge:      cfg.ConnectionAge,
			MaxConnectionAgeGrace: cfg.CallCeiling + time.Second, // for the last call, and its answer
			Time:                  keepaliveTime,
			Timeout:               keepaliveTimeout,
		}),
		// A client may ping every 10 s, also between calls; one that does it faster is disconnected.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.UnknownServiceHandler(call.UnknownMethod(cfg.Logger, metrics)),
		grpc.InTapHandle(tapStreams()),
		grpc.UnaryInterceptor(onlyCalls(intercept)),
		grpc.ChainStreamInterceptor(endStreams(ended)),
		grpc.WaitForHandlers(true),
	}
	if creds != nil {
		opts = append(opts, grpc.Creds(creds))
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

// onlyCalls runs the service's own calls, whose message has arrived, inside the call chain. Health is outside of it, but for a panic.
func onlyCalls(intercept grpc.UnaryServerInterceptor) grpc.UnaryServerInterceptor {
	own := "/" + ephemeraltokenv1.EphemeralTokenService_ServiceDesc.ServiceName + "/"
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		openStreamFrom(ctx).arrived()
		if strings.HasPrefix(info.FullMethod, own) {
			return intercept(ctx, req, info, handler)
		}
		return call.Recover(ctx, req, info, handler)
	}
}
