package rest

import (
	"context"
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

// The only headers that cross from REST into a call and back. Grpc-Timeout ends at the front (handler.go).
var (
	headersIn  = canonical(auth.Header, auth.SecondHeader, call.RequestIDHeader, "traceparent", "tracestate", "cache-control")
	headersOut = canonical(call.RequestIDHeader, "cache-status", "age")
)

// header is the name of one: in lower case, as in metadata, and in the form in which net/http has it.
type header struct{ name, canonical string }

func canonical(names ...string) []header {
	all := make([]header, 0, len(names))
	for _, name := range names {
		all = append(all, header{name, http.CanonicalHeaderKey(name)})
	}
	return all
}

// incomingHeaders is what a call knows of the headers of its request.
func incomingHeaders(received http.Header) metadata.MD {
	md := metadata.MD{}
	for _, h := range headersIn {
		if values := received[h.canonical]; len(values) > 0 {
			md[h.name] = values
		}
	}
	return md
}

// setHeaders takes over what a request is to know of the metadata of its call's answer, be that in headers or, of a call that failed,
// in trailers.
func setHeaders(to http.Header, answer metadata.MD) {
	for _, h := range headersOut {
		if values := answer[h.name]; len(values) > 0 {
			to[h.canonical] = values
		}
	}
}

// Config says what a handler serves. All of it has to be set, except Pages, Origins and Overloaded.
type Config struct {
	Service   ephemeraltokenv1.EphemeralTokenServiceServer
	Intercept grpc.UnaryServerInterceptor // the call chain
	Logger    *slog.Logger
	Metrics   *call.Metrics
	// Pages answer GET and HEAD of their paths, which are no calls: they need no credential and pass no chain.
	Pages map[string]http.Handler
	// Origins are those whose pages browsers let call the service and read its answers (CORS). Each has to pass ValidateOrigin.
	Origins []string
	// Overloaded reports whether the request with this context is to be refused, and whether the answer must have no body.
	Overloaded func(ctx context.Context) (refuse, brief bool)
}

// NewHandler serves the service's routes. It does not dial the gRPC listener: a request becomes a call in this process and
// passes the same chain.
func NewHandler(cfg Config) (http.Handler, error) {
	mux := runtime.NewServeMux(
		runtime.WithIncomingHeaderMatcher(none),
		runtime.WithOutgoingHeaderMatcher(none),
		runtime.WithOutgoingTrailerMatcher(none),
		runtime.WithMarshalerOption(runtime.MIMEWildcard, newMarshaler()),
		runtime.WithForwardResponseOption(successStatus),
		runtime.WithErrorHandler(gatewayErrorHandler(cfg.Logger, cfg.Metrics)),
		runtime.WithDisableHTTPMethodOverride(),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithWriteContentLength(),
	)
	local := inProcess{svc: cfg.Service, intercept: cfg.Intercept}
	if err := gatewayv1.RegisterEphemeralTokenServiceHandlerServer(context.Background(), mux, local); err != nil {
		return nil, err
	}
	known, err := serviceRoutes(ephemeraltokenv1.File_forsta_ephemeraltoken_v1_ephemeral_token_proto)
	if err != nil {
		return nil, err
	}
	for path := range cfg.Pages {
		known[path] = []string{http.MethodGet, http.MethodHead}
	}
	h := &handler{
		routes: known, pages: cfg.Pages,
		gateway: mux, log: cfg.Logger, metrics: cfg.Metrics, overloaded: cfg.Overloaded,
	}
	return allowOrigins(cfg.Origins, known, h), nil
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

// none is that the gateway passes no header on, in either direction: the front does (handler.go).
func none(string) (string, bool) { return "", false }

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
func gatewayErrorHandler(log *slog.Logger, metrics *call.Metrics) runtime.ErrorHandlerFunc {
	return func(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
		var failed *apierror.Error
		if !errors.As(err, &failed) {
			failed = &apierror.Error{Reason: apierror.RequestMalformed, Cause: errUndecodable}
			w.Header().Set(call.RequestIDHeader, call.RecordFrom(ctx).RequestID())
			metrics.CountFailure(ctx, failed)
			call.Log(ctx, log, r.Method+" "+r.URL.Path, 0, failed)
		}
		writeError(w, failed, false)
	}
}

// writeError answers with google.rpc.Status as JSON: {"code", "message", "details"}. A brief answer has headers only,
// which a client cannot keep from being sent by not reading.
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
		_, _ = w.Write(body) // the client has gone if this fails
	}
}
