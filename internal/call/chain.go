// Package call has the interceptors that every call runs through, over gRPC and over REST. They
// produce the call's log line, its audit record, its metrics and the metadata of its response. The
// package knows no method by name, and is the only place where a caller is authenticated.
package call

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
)

// Config configures a chain. CutOff, CallerRate, Tracer and Propagator are optional.
type Config struct {
	Logger  *slog.Logger // gets one line per call, at level debug if the call succeeds
	Audit   *slog.Logger // gets one record per call
	Metrics *Metrics
	Auth    *auth.Authenticator
	// MaxCalls limits the calls in progress over all transports. One caller gets at most half.
	MaxCalls int64
	// CallerRate is how many calls to Atlas one caller may cause per second; 0 is no limit.
	CallerRate int
	// Refused is called with the name of the limit, one of Limits, when a call exceeds it.
	Refused func(limit string)
	// Ceiling bounds the duration of a call.
	Ceiling time.Duration
	// CutOff ends the calls in progress with an error when it is done.
	CutOff context.Context //nolint:containedctx // it belongs to the service, not to a call
	// Tracer makes a span for each call; nil disables tracing. Propagator reads the parent span
	// from the call's headers.
	Tracer     trace.Tracer
	Propagator propagation.TextMapPropagator
}

// New returns the chain. Both transports must share one, so that they share its limits.
func New(cfg Config) grpc.UnaryServerInterceptor { return join(interceptors(cfg)...) }

// interceptors returns the parts of the chain, outermost first.
func interceptors(cfg Config) []grpc.UnaryServerInterceptor {
	return []grpc.UnaryServerInterceptor{
		observe(cfg),
		recoverPanic,
		limit(cfg.Ceiling, cmp.Or(cfg.CutOff, context.Background())),
		authenticate(cfg.Auth),
		limitCaller(int(cfg.MaxCalls), cfg.CallerRate, cfg.Refused),
	}
}

// join nests interceptors, the first outermost.
func join(interceptors ...grpc.UnaryServerInterceptor) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		for _, intercept := range slices.Backward(interceptors) {
			next := handler
			handler = func(ctx context.Context, req any) (any, error) { return intercept(ctx, req, info, next) }
		}
		return handler(ctx, req)
	}
}

// recoverPanic turns a panic into an error of the call.
func recoverPanic(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (_ any, err error) {
	defer Recover(&err)
	return handler(ctx, req)
}

// Recover turns a panic into an internal error. Use it as defer call.Recover(&err).
func Recover(err *error) {
	if v := recover(); v != nil {
		*err = &apierror.Error{Reason: apierror.Internal, Cause: &panicError{v, string(debug.Stack())}}
	}
}

// panicError is a recovered panic. The value may contain a credential, so Error gives only its
// type, unless the runtime raised it. The stack has function names and addresses, no strings.
type panicError struct {
	value any
	stack string
}

func (e *panicError) Error() string {
	if err, ok := e.value.(runtime.Error); ok {
		return "panic: " + err.Error()
	}
	return fmt.Sprintf("panic: a value of type %T", e.value)
}

// authenticate identifies the caller and the credential to use at Atlas.
func authenticate(a *auth.Authenticator) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		rec := RecordFrom(ctx)
		grant, err := a.Authenticate(ctx, info.FullMethod)
		if err == nil && rec.rest != nil && rec.rest.forbidden != nil {
			grant, err = auth.Grant{Caller: grant.Caller}, rec.rest.forbidden
		}
		rec.grant = grant // set for a refused call too: the log and the audit record name the caller
		if err != nil {
			return nil, err
		}
		return handler(ctx, req)
	}
}
