package server

import (
	"context"

	"google.golang.org/grpc"

	"github.com/ForstaLabs/ephemeral-token-service/server/auth"

	"github.com/ForstaLabs/ephemeral-token-service/server/apierror"
)

// callChain is what every call passes on its way to its handler, outermost first. gRPC and REST both use this one
// list, so that neither can be let in by a door the other does not have.
func callChain(cfg Config) []grpc.UnaryServerInterceptor {
	return []grpc.UnaryServerInterceptor{
		observe(cfg.Logger, cfg.Audit),
		recoverPanic,
		mapErrors,
		limit(cfg.MaxCalls, cfg.CallCeiling),
		authenticate(cfg.Auth),
	}
}

// chain makes one interceptor of several, the first outermost.
func chain(interceptors ...grpc.UnaryServerInterceptor) grpc.UnaryServerInterceptor {
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
		recordFrom(ctx).grant = grant // as far as it goes, also of a call that is refused
		if err != nil {
			return nil, err
		}
		return handler(auth.NewGrantContext(ctx, grant), req)
	}
}
