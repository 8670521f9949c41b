// Package chain has the interceptors that every call passes on its way to its handler. They produce the call's log line, its
// audit record and the metadata of its answer. Both transports run the same chain. It knows no method by name, and is the only
// place where a caller is authenticated.
package call

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
)

// Config says what a chain goes by. All of it has to be set, but for CutOff, CallerRate, and Tracer with Propagator.
type Config struct {
	Logger   *slog.Logger // gets one line per call, at level debug if it went well
	Audit    *slog.Logger // gets one record per call
	Metrics  *Metrics
	MaxCalls int64 // in progress at a time, over all transports; one caller's are at most half of them
	Ceiling  time.Duration
	// CutOff ends the calls that are in progress when it is done, each with an answer.
	CutOff context.Context //nolint:containedctx // it is of no call
	Auth   *auth.Authenticator
	// CallerRate is how many calls one caller may begin in a second; 0 is no limit.
	CallerRate int
	// Refused is told of each call that is refused for which limit, one of a fixed few.
	Refused func(limit string)
	// Tracer makes a span of each call, whose parent Propagator takes from the call's headers. Without one there are none.
	Tracer     trace.Tracer
	Propagator propagation.TextMapPropagator
}

func (c Config) tracing() *tracing {
	if c.Tracer == nil {
		return nil
	}
	return &tracing{c.Tracer, c.Propagator}
}

// New makes the chain of cfg. gRPC and REST both need this one, so that neither has slots of its own, and nobody is let in by
// a door that the other does not have.
func New(cfg Config) grpc.UnaryServerInterceptor { return join(interceptors(cfg)...) }

// interceptors are the chain, outermost first.
func interceptors(cfg Config) []grpc.UnaryServerInterceptor {
	return []grpc.UnaryServerInterceptor{
		observe(cfg.Logger, cfg.Audit, cfg.Metrics, cfg.tracing()),
		Recover,
		mapErrors,
		limit(cfg.Ceiling, cmp.Or(cfg.CutOff, context.Background())),
		authenticate(cfg.Auth),
		limitCaller(int(cfg.MaxCalls), cfg.CallerRate, cfg.Refused),
	}
}

// join makes one interceptor of several, the first outermost.
func join(interceptors ...grpc.UnaryServerInterceptor) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		for _, intercept := range slices.Backward(interceptors) {
			next := handler
			handler = func(ctx context.Context, req any) (any, error) { return intercept(ctx, req, info, next) }
		}
		return handler(ctx, req)
	}
}

// mapErrors turns whatever went wrong further in into the error of the public contract.
func mapErrors(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	resp, err := handler(ctx, req)
	if err != nil {
		return nil, apierror.From(err)
	}
	return resp, nil
}

// authenticate finds out who is calling and with which credential the call goes on.
func authenticate(a *auth.Authenticator) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		rec := RecordFrom(ctx)
		grant, err := a.Authenticate(ctx, info.FullMethod)
		if err == nil && rec.rest != nil && rec.rest.forbidden != nil {
			grant, err = auth.Grant{Caller: grant.Caller}, rec.rest.forbidden
		}
		rec.grant = grant // as far as it goes, also of a call that is refused
		if err != nil {
			return nil, err
		}
		return handler(ctx, req)
	}
}
