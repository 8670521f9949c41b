// Package chain is what every call passes on its way to its handler, and what is left of it on the way back: its log line, its
// audit record and the headers of its answer. Both transports run the same chain. It knows no method by name, and nobody else
// asks who is calling.
package chain

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	"github.com/ForstaLabs/ephemeral-token-service/server/apierror"
	"github.com/ForstaLabs/ephemeral-token-service/server/auth"
)

// Config says what a chain goes by. All of it has to be set.
type Config struct {
	Logger   *slog.Logger // gets one line per call, at level debug if it went well
	Audit    *slog.Logger // gets one record per call
	MaxCalls int64        // in progress at a time, over all transports
	Ceiling  time.Duration
	Auth     *auth.Authenticator
}

// New makes the chain of cfg. gRPC and REST both need this one, so that neither has slots of its own, and nobody is let in by
// a door that the other does not have.
func New(cfg Config) grpc.UnaryServerInterceptor { return join(interceptors(cfg)...) }

// interceptors are the chain, outermost first.
func interceptors(cfg Config) []grpc.UnaryServerInterceptor {
	return []grpc.UnaryServerInterceptor{
		observe(cfg.Logger, cfg.Audit),
		Recover,
		mapErrors,
		limit(cfg.MaxCalls, cfg.Ceiling),
		authenticate(cfg.Auth),
	}
}

// join makes one interceptor of several, the first outermost.
func join(interceptors ...grpc.UnaryServerInterceptor) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		next := handler
		for i := len(interceptors) - 1; i >= 0; i-- {
			inner, intercept := next, interceptors[i]
			next = func(ctx context.Context, req any) (any, error) { return intercept(ctx, req, info, inner) }
		}
		return next(ctx, req)
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
		grant, err := a.Authenticate(ctx, info.FullMethod)
		RecordFrom(ctx).grant = grant // as far as it goes, also of a call that is refused
		if err != nil {
			return nil, err
		}
		return handler(auth.NewGrantContext(ctx, grant), req)
	}
}
