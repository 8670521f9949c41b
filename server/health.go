package server

import (
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// newHealth is grpc.health.v1 of a server that does not run yet.
func newHealth() *health.Server {
	h := health.NewServer()
	h.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	return h
}

// setServing says that calls are answered.
func setServing(h *health.Server) {
	h.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	h.SetServingStatus(ephemeraltokenv1.EphemeralTokenService_ServiceDesc.ServiceName, healthpb.HealthCheckResponse_SERVING)
}
