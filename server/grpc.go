package server

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
	"github.com/ForstaLabs/ephemeral-token-service/internal/call"
)

// transportHeaderBytes is how large headers may be for grpc-go and net/http. Beyond it they may end the connection, with
// other calls on it, so it is larger than what a call may have, which is checked call by call.
const transportHeaderBytes = 128 << 10

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

// grpcOptions are the hardened defaults of the gRPC listener.
func grpcOptions(cfg Config, guard *streams, creds credentials.TransportCredentials) []grpc.ServerOption {
	opts := []grpc.ServerOption{
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.MaxHeaderListSize(transportHeaderBytes),
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
		grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
			return guard.refuse(stream.Context(), "unknown method", apierror.RouteNotFound)
		}),
		grpc.InTapHandle(markOversized),
		grpc.StreamInterceptor(guard.intercept),
		grpc.WaitForHandlers(true),
	}
	if creds != nil {
		opts = append(opts, grpc.Creds(creds))
	}
	return opts
}

// newGRPCServer has the service, and health and reflection beside it: probes and grpcurl have no credential, and both tell
// only what is public.
func newGRPCServer(guard *streams, svc ephemeraltokenv1.EphemeralTokenServiceServer, intercept grpc.UnaryServerInterceptor, h healthpb.HealthServer, opts []grpc.ServerOption) *grpc.Server {
	s := grpc.NewServer(opts...)
	guard.register(s, ephemeraltokenv1.EphemeralTokenService_ServiceDesc, svc, intercept)
	guard.register(s, healthpb.Health_ServiceDesc, boundedHealth{h}, call.Recover)
	reflection.Register(s) // v1 and v1alpha
	return s
}
