// Command facade is a plain implementation of the service: a grpc-go server that forwards each call
// to Atlas with net/http, and a gateway in front of it. It has no sharing, cache, limits, log or
// metrics.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	gatewayv1 "github.com/ForstaLabs/ephemeral-token-service/gen/gateway/forsta/ephemeraltoken/v1"

	"github.com/ForstaLabs/ephemeral-token-service/bench/peers/serving"
)

type facade struct {
	ephemeraltokenv1.UnimplementedEphemeralTokenServiceServer
	url    string
	client *http.Client
}

func (f *facade) CreateToken(ctx context.Context, _ *ephemeraltokenv1.CreateTokenRequest) (*ephemeraltokenv1.CreateTokenResponse, error) {
	credential := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(credential) != 1 {
		return nil, status.Error(codes.Unauthenticated, "no credential")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.url+"/ephemeral-token", nil)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	req.Header.Set("Authorization", credential[0])
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Content-Type", "application/json")
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		return nil, status.Error(codes.Unknown, resp.Status)
	}
	var body struct {
		Token string `json:"token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &ephemeraltokenv1.CreateTokenResponse{Token: body.Token}, nil
}

// newClient returns net/http's default client, with HTTP/2. For HTTP/1.1 it keeps more than the
// default two idle connections, which would cause a TLS handshake for most calls.
func newClient(caFile string, http1 bool) (*http.Client, error) {
	roots, err := serving.Roots(caFile)
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	if http1 {
		transport.Protocols = new(http.Protocols)
		transport.Protocols.SetHTTP1(true)
		transport.MaxIdleConns, transport.MaxIdleConnsPerHost = 0, 1000
	}
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}, nil
}

// newGateway dials this process's gRPC address, as is common, or calls f in process.
func newGateway(f *facade, settings *serving.Settings, inProcess bool) (http.Handler, error) {
	mux := runtime.NewServeMux()
	if inProcess {
		return mux, gatewayv1.RegisterEphemeralTokenServiceHandlerServer(context.Background(), mux, f)
	}
	opts, err := settings.DialItself()
	if err != nil {
		return nil, err
	}
	return mux, gatewayv1.RegisterEphemeralTokenServiceHandlerFromEndpoint(context.Background(), mux, settings.GRPCAddr, opts)
}

func main() {
	var settings serving.Settings
	settings.Declare()
	url := flag.String("atlas-url", "", "Atlas's base URL")
	caFile := flag.String("atlas-ca-file", "", "whom to trust for it, PEM")
	http1 := flag.Bool("http1", false, "call Atlas over HTTP/1.1 rather than HTTP/2")
	inProcess := flag.Bool("in-process", false, "the gateway calls the service directly rather than over loopback")
	flag.Parse()
	if err := run(&settings, *url, *caFile, *http1, *inProcess); err != nil {
		serving.Exit(fmt.Errorf("facade: %w", err))
	}
}

func run(settings *serving.Settings, url, caFile string, http1, inProcess bool) error {
	client, err := newClient(caFile, http1)
	if err != nil {
		return err
	}
	f := &facade{url: url, client: client}
	server, err := settings.NewGRPCServer()
	if err != nil {
		return err
	}
	ephemeraltokenv1.RegisterEphemeralTokenServiceServer(server, f)
	gateway, err := newGateway(f, settings, inProcess)
	if err != nil {
		return err
	}
	return settings.Run(server, gateway)
}
