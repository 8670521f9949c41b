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

// transportHeaderBytes is the header limit of grpc-go and net/http. Beyond it they may end the
// connection with other calls on it, so it is larger than the limit of a call, which is checked per
// call.
const transportHeaderBytes = 128 << 10

// maxStreams is how many calls one HTTP/2 connection may have open.
const maxStreams = 100

// A connection on which no frame is completed for keepaliveTime is pinged, and closed if the ping
// is not answered within keepaliveTimeout. This is the only timeout for dead clients and for those
// that send a frame or a header block byte by byte, so it is short: they are gone within ten
// seconds.
const (
	keepaliveTime    = 4 * time.Second
	keepaliveTimeout = 5 * time.Second
)

// streamWorkers is how many goroutines wait for calls; calls beyond these get a new one. A new
// goroutine starts with a small stack and copies it several times as it grows, which costs a tenth
// of a call's CPU. With 256, calls take turns on more stacks than the CPU's cache holds: that costs
// a fifth.
const streamWorkers = 64

// grpcOptions returns the options of the gRPC server.
func grpcOptions(cfg Config, guard *streams, creds credentials.TransportCredentials) []grpc.ServerOption {
	opts := []grpc.ServerOption{
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.MaxHeaderListSize(transportHeaderBytes),
		grpc.MaxRecvMsgSize(call.MaxMessageBytes),
		// Without this, grpc-go logs the name of any other codec that a caller asks for, which may
		// be a secret.
		grpc.ForceServerCodecV2(encoding.GetCodecV2(proto.Name)),
		grpc.MaxSendMsgSize(call.MaxMessageBytes),
		grpc.ConnectionTimeout(8 * time.Second), // TLS and HTTP/2 handshake
		// Answers are small and connections many. The read buffer holds a frame that is a little
		// too large: unread bytes would make TCP reset the connection before the client has read
		// the error.
		grpc.WriteBufferSize(4 << 10),
		grpc.ReadBufferSize(18 << 10), // a size class of Go's allocator
		// By default grpc-go grows the windows up to 16 MiB.
		grpc.StaticStreamWindowSize(call.MaxMessageBytes),
		grpc.StaticConnWindowSize(4 * call.MaxMessageBytes),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: 15 * time.Minute,
			// Connections end regularly, so that clients find replicas that were added since.
			MaxConnectionAge:      cfg.ConnectionAge,
			MaxConnectionAgeGrace: cfg.CallCeiling + time.Second, // for the last answer
			Time:                  keepaliveTime,
			Timeout:               keepaliveTimeout,
		}),
		// A client may ping every 10 s, also between calls; one that pings faster is disconnected.
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

// newGRPCServer returns a server with the service, health and reflection. The latter two need no
// credential, since probes and grpcurl have none, and show only what is public.
func newGRPCServer(guard *streams, svc ephemeraltokenv1.EphemeralTokenServiceServer, intercept grpc.UnaryServerInterceptor, h healthpb.HealthServer, opts []grpc.ServerOption) *grpc.Server {
	s := grpc.NewServer(opts...)
	guard.register(s, ephemeraltokenv1.EphemeralTokenService_ServiceDesc, svc, intercept)
	guard.register(s, healthpb.Health_ServiceDesc, boundedHealth{h}, nil)
	reflection.Register(s) // v1 and v1alpha
	return s
}
