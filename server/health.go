package server

import (
	"context"

	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// healthService is grpc.health.v1. It differs from grpc-go's in one thing: a watcher is told of the shutdown and then
// let go. It would hold up every graceful stop otherwise, since a watch has no end.
type healthService struct {
	*health.Server
	draining chan struct{} // closed when the server drains
}

func newHealthService() *healthService {
	h := &healthService{Server: health.NewServer(), draining: make(chan struct{})}
	h.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING) // until Run
	return h
}

// serving says that calls are answered.
func (h *healthService) serving() {
	h.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	h.SetServingStatus(ephemeraltokenv1.EphemeralTokenService_ServiceDesc.ServiceName, healthpb.HealthCheckResponse_SERVING)
}

// drain says that no more calls should come. It is called once.
func (h *healthService) drain() {
	close(h.draining)
	h.Shutdown()
}

// Watch implements healthpb.HealthServer.
func (h *healthService) Watch(req *healthpb.HealthCheckRequest, stream healthpb.Health_WatchServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	return h.Server.Watch(req, &watchStream{Health_WatchServer: stream, ctx: ctx, sent: func() {
		select {
		case <-h.draining:
			cancel()
		default:
		}
	}})
}

// watchStream calls sent after each message.
type watchStream struct {
	healthpb.Health_WatchServer
	ctx  context.Context
	sent func()
}

func (s *watchStream) Context() context.Context { return s.ctx }

func (s *watchStream) Send(resp *healthpb.HealthCheckResponse) error {
	defer s.sent()
	return s.Health_WatchServer.Send(resp)
}
