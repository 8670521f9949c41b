// Command echo is a minimal server of this API: grpc-go, or the gateway in process, with a constant
// token. It calls nothing, checks nothing and logs nothing.
package main

import (
	"context"
	"flag"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	gatewayv1 "github.com/ForstaLabs/ephemeral-token-service/gen/gateway/forsta/ephemeraltoken/v1"

	"github.com/ForstaLabs/ephemeral-token-service/bench/peers/serving"
)

type echo struct {
	ephemeraltokenv1.UnimplementedEphemeralTokenServiceServer
}

func (echo) CreateToken(context.Context, *ephemeraltokenv1.CreateTokenRequest) (*ephemeraltokenv1.CreateTokenResponse, error) {
	return &ephemeraltokenv1.CreateTokenResponse{Token: "0123456789abcdef0123456789abcdef01234567"}, nil
}

func main() {
	var settings serving.Settings
	settings.Declare()
	flag.Parse()
	server, err := settings.NewGRPCServer()
	if err != nil {
		serving.Exit(err)
	}
	ephemeraltokenv1.RegisterEphemeralTokenServiceServer(server, echo{})
	mux := runtime.NewServeMux()
	if err := gatewayv1.RegisterEphemeralTokenServiceHandlerServer(context.Background(), mux, echo{}); err != nil {
		serving.Exit(err)
	}
	serving.Exit(settings.Run(server, mux))
}
