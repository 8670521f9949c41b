package rest

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/server/apierror"
	"github.com/ForstaLabs/ephemeral-token-service/server/auth"
	"github.com/ForstaLabs/ephemeral-token-service/server/chain"
)

// The only headers that cross from REST into a call's metadata and back. grpc-timeout the gateway handles itself.
var (
	headersIn  = []string{auth.Header, auth.SecondHeader, chain.RequestIDHeader, "traceparent", "tracestate", "cache-control"}
	headersOut = []string{chain.RequestIDHeader, "cache-status", "age"}
)

// NewHandler serves svc's routes. It does not dial the gRPC listener: a request becomes a call in this process and
// passes the same chain.
func NewHandler(svc ephemeraltokenv1.EphemeralTokenServiceServer, intercept grpc.UnaryServerInterceptor, log *slog.Logger) (http.Handler, error) {
	mux := runtime.NewServeMux(
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }), // incomingMetadata has them all
		runtime.WithMetadata(incomingMetadata),
		runtime.WithOutgoingHeaderMatcher(outgoingHeader),
		runtime.WithOutgoingTrailerMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithForwardResponseOption(successStatus),
		runtime.WithErrorHandler(gatewayErrorHandler(log)),
		runtime.WithDisableHTTPMethodOverride(),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithWriteContentLength(),
	)
	local := inProcess{svc: svc, intercept: intercept}
	if err := ephemeraltokenv1.RegisterEphemeralTokenServiceHandlerServer(context.Background(), mux, local); err != nil {
		return nil, err
	}
	return &handler{routes: serviceRoutes(ephemeraltokenv1.File_forsta_ephemeraltoken_v1_ephemeral_token_proto), gateway: mux, log: log}, nil
}

// inProcess runs the service's RPCs inside the call chain, under the names that they have on the wire.
type inProcess struct {
	ephemeraltokenv1.UnsafeEphemeralTokenServiceServer // a new RPC does not compile until it is here
	svc                                                ephemeraltokenv1.EphemeralTokenServiceServer
	intercept                                          grpc.UnaryServerInterceptor
}

func (p inProcess) CreateToken(ctx context.Context, req *ephemeraltokenv1.CreateTokenRequest) (*ephemeraltokenv1.CreateTokenResponse, error) {
	return invoke(ctx, p.intercept, ephemeraltokenv1.EphemeralTokenService_CreateToken_FullMethodName, req, p.svc.CreateToken)
}

func (p inProcess) DeleteToken(ctx context.Context, req *ephemeraltokenv1.DeleteTokenRequest) (*ephemeraltokenv1.DeleteTokenResponse, error) {
	return invoke(ctx, p.intercept, ephemeraltokenv1.EphemeralTokenService_DeleteToken_FullMethodName, req, p.svc.DeleteToken)
}

func invoke[Req, Resp any](ctx context.Context, intercept grpc.UnaryServerInterceptor, method string, req Req, rpc func(context.Context, Req) (Resp, error)) (Resp, error) {
	info := &grpc.UnaryServerInfo{FullMethod: method}
	resp, err := intercept(ctx, req, info, func(ctx context.Context, _ any) (any, error) { return rpc(ctx, req) })
	if err != nil {
		var none Resp
		return none, err
	}
	return resp.(Resp), nil
}

// incomingMetadata is what a call knows of its request's headers. Its values replace the gateway's own, and the two
// forwarding headers, which the gateway would make up from the connection and pass on, are emptied.
func incomingMetadata(_ context.Context, r *http.Request) metadata.MD {
	md := metadata.MD{"x-forwarded-for": nil, "x-forwarded-host": nil}
	for _, name := range headersIn {
		if values := r.Header.Values(name); len(values) > 0 {
			md[name] = slices.Clone(values)
		}
	}
	return md
}

func outgoingHeader(name string) (string, bool) { return name, slices.Contains(headersOut, name) }

// successStatus gives the answers the statuses that Atlas gives them: 201, and 204 without a body or its type.
func successStatus(_ context.Context, w http.ResponseWriter, resp proto.Message) error {
	switch resp.(type) {
	case *ephemeraltokenv1.CreateTokenResponse:
		w.WriteHeader(http.StatusCreated)
	case *ephemeraltokenv1.DeleteTokenResponse:
		w.Header().Del("Content-Type")
		w.WriteHeader(http.StatusNoContent)
	}
	return nil
}

// gatewayErrorHandler writes a failed call's error, and makes one of what the gateway itself could not read.
func gatewayErrorHandler(log *slog.Logger) runtime.ErrorHandlerFunc {
	return func(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
		var failed *apierror.Error
		if !errors.As(err, &failed) {
			failed = &apierror.Error{Reason: apierror.RequestMalformed, Cause: errUndecodable}
			_, id := chain.EnsureRequestID(ctx)
			w.Header().Set(chain.RequestIDHeader, id)
			chain.Log(ctx, log, chain.Call{Method: r.Method + " " + r.URL.Path, RequestID: id, Err: failed})
		}
		if md, ok := runtime.ServerMetadataFromContext(ctx); ok {
			for _, name := range headersOut {
				for _, value := range md.HeaderMD.Get(name) {
					w.Header().Add(name, value)
				}
			}
		}
		writeError(w, failed)
	}
}

// writeError answers with google.rpc.Status as JSON: {"code", "message", "details"}.
func writeError(w http.ResponseWriter, e *apierror.Error) {
	st := e.GRPCStatus()
	body, err := protojson.Marshal(st.Proto())
	if err != nil {
		panic(err) // cannot happen: the details' types are linked in
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if st.Code() == codes.Unauthenticated {
		h.Set(apierror.ChallengeHeader, apierror.Challenge)
	}
	if d := e.RetryDelay(); d > 0 {
		h.Set("Retry-After", strconv.Itoa(int((d+time.Second-1)/time.Second)))
	}
	w.WriteHeader(e.HTTPStatus())
	_, _ = w.Write(body) // the client has gone if this fails
}
