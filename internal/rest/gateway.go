package rest

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	gatewayv1 "github.com/ForstaLabs/ephemeral-token-service/gen/gateway/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/call"
)

// The headers that are passed from REST requests to calls and back. handler.go reads Grpc-Timeout.
var (
	headersIn  = canonical(auth.Header, auth.SecondHeader, call.RequestIDHeader, "traceparent", "tracestate", "cache-control")
	headersOut = canonical(call.RequestIDHeader, "cache-status", "age")
)

// header is a header's name, in lower case as in metadata and in net/http's form.
type header struct{ name, canonical string }

func canonical(names ...string) []header {
	all := make([]header, 0, len(names))
	for _, name := range names {
		all = append(all, header{name, http.CanonicalHeaderKey(name)})
	}
	return all
}

// incomingHeaders returns a request's headers for its call.
func incomingHeaders(received http.Header) metadata.MD {
	md := metadata.MD{}
	for _, h := range headersIn {
		if values := received[h.canonical]; len(values) > 0 {
			md[h.name] = values
		}
	}
	return md
}

// setHeaders copies the metadata of a call's answer into the response headers.
func setHeaders(to http.Header, answer metadata.MD) {
	for _, h := range headersOut {
		if values := answer[h.name]; len(values) > 0 {
			to[h.canonical] = values
		}
	}
}

// Config configures a handler. Pages and Origins are optional.
type Config struct {
	Service   ephemeraltokenv1.EphemeralTokenServiceServer
	Intercept grpc.UnaryServerInterceptor // the call chain
	Logger    *slog.Logger
	Metrics   *call.Metrics
	// Pages answer GET and HEAD of their paths. They are not calls: they need no credential and
	// skip the call chain.
	Pages map[string]http.Handler
	// Origins are those whose pages may call the service from a browser (CORS). Each must pass
	// ValidateOrigin.
	Origins []string
	// Overloaded reports whether to refuse the request with this context, and whether the answer
	// must have no body.
	Overloaded func(ctx context.Context) (refuse, brief bool)
}

// NewHandler returns a handler of the service's routes. Requests become calls in this process,
// through the same call chain as gRPC.
func NewHandler(cfg Config) (http.Handler, error) {
	h := &handler{Config: cfg, routes: newRoutes(cfg.Pages)}
	h.gateway = runtime.NewServeMux(
		runtime.WithIncomingHeaderMatcher(noHeaders),
		runtime.WithOutgoingHeaderMatcher(noHeaders),
		runtime.WithOutgoingTrailerMatcher(noHeaders),
		runtime.WithMarshalerOption(runtime.MIMEWildcard, newMarshaler()),
		runtime.WithForwardResponseOption(successStatus),
		runtime.WithErrorHandler(h.failCall),
		runtime.WithDisableHTTPMethodOverride(),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithWriteContentLength(),
	)
	local := inProcess{svc: cfg.Service, intercept: cfg.Intercept}
	if err := gatewayv1.RegisterEphemeralTokenServiceHandlerServer(context.Background(), h.gateway, local); err != nil {
		return nil, err
	}
	return allowOrigins(cfg.Origins, h.routes, h), nil
}

// inProcess runs the service's RPCs inside the call chain.
type inProcess struct {
	ephemeraltokenv1.UnsafeEphemeralTokenServiceServer // makes a missing RPC an error
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

// noHeaders makes the gateway pass no headers on; handler.go does that.
func noHeaders(string) (string, bool) { return "", false }

// successStatus sets the same statuses as Atlas: 201, and 204 without a body.
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

// failCall writes the error of a failed call, which the chain has logged and counted. An error of
// the gateway itself is one of decoding.
func (h *handler) failCall(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
	if failed, ok := errors.AsType[*apierror.Error](err); ok {
		writeError(w, failed, false)
		return
	}
	h.refuse(w, r, 0, &apierror.Error{Reason: apierror.RequestMalformed, Cause: errUndecodable}, false)
}

// writeError answers with google.rpc.Status as JSON: {"code", "message", "details"}. A brief answer
// has headers only: HTTP/2 flow control does not apply to those, so it is sent even if the client
// does not read.
func writeError(w http.ResponseWriter, e *apierror.Error, brief bool) {
	st := e.GRPCStatus()
	body, err := protojson.Marshal(st.Proto())
	if err != nil {
		panic(err) // cannot happen: the details' types are linked in
	}
	if brief {
		body = nil
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
	if !brief {
		_, _ = w.Write(body) //nolint:gosec // JSON of fixed texts; fails only if the client has gone
	}
}

// marshaler writes answers by encoding/json: protojson adds spaces at random.
type marshaler struct{ *runtime.JSONPb }

func newMarshaler() marshaler {
	return marshaler{&runtime.JSONPb{UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: true}}}
}

// Marshal implements runtime.Marshaler.
func (marshaler) Marshal(v any) ([]byte, error) { return json.Marshal(v) }
