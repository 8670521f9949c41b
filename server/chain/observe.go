package chain

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/ForstaLabs/ephemeral-token-service/server/apierror"
)

// observe gives every call its request id and leaves one log line about it. Headers that an error asks for are set
// here as well, since this is the outermost place that sees every error.
func observe(log, audit *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		start := time.Now()
		ctx, id := EnsureRequestID(ctx)
		ctx, rec := withRecord(ctx)
		resp, err := handler(ctx, req)
		headers := metadata.Pairs(RequestIDHeader, id)
		if err != nil && apierror.From(err).GRPCStatus().Code() == codes.Unauthenticated {
			headers.Set(apierror.ChallengeHeader, apierror.Challenge)
		}
		// It fails only if the headers have gone out already, and nothing sends them before this.
		_ = grpc.SetHeader(ctx, headers)
		c := Call{Method: info.FullMethod, RequestID: id, Duration: time.Since(start), Err: err}
		Log(ctx, log, c)
		auditCall(ctx, audit, c, rec)
		return resp, err
	}
}

// UnknownMethod answers calls of methods that nobody has. Their names are not logged: somebody may have put a secret there.
func UnknownMethod(log *slog.Logger) grpc.StreamHandler {
	observed, info := observe(log, slog.New(slog.DiscardHandler)), &grpc.UnaryServerInfo{FullMethod: "unknown method"}
	return func(_ any, stream grpc.ServerStream) error {
		_, err := observed(stream.Context(), nil, info, func(context.Context, any) (any, error) {
			return nil, &apierror.Error{Reason: apierror.RouteNotFound}
		})
		return err
	}
}

// Call is what the log says about one call.
type Call struct {
	Method    string // full gRPC method, or verb and path of a REST request that never became a call
	RequestID string
	Duration  time.Duration
	Err       error
}

// Log leaves one line: at level debug if it went well, else at the level of its reason. The cause of an error is here and
// nowhere else.
func Log(ctx context.Context, log *slog.Logger, c Call) {
	if c.Err == nil && !log.Enabled(ctx, slog.LevelDebug) {
		return // most calls: nothing is put together that nobody reads
	}
	attrs := []slog.Attr{
		slog.String("method", c.Method),
		slog.String("request_id", c.RequestID),
		slog.Float64("duration_ms", float64(c.Duration.Microseconds())/1000),
	}
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		attrs = append(attrs, slog.String("peer", p.Addr.String()))
	}
	if c.Err == nil {
		attrs = append(attrs, slog.String("code", codes.OK.String()))
		log.LogAttrs(ctx, slog.LevelDebug, "call", attrs...)
		return
	}
	e := apierror.From(c.Err)
	attrs = append(attrs, slog.String("code", e.GRPCStatus().Code().String()), slog.String("reason", e.ReasonName()))
	if e.Cause != nil {
		attrs = append(attrs, slog.String("cause", e.Cause.Error()))
	}
	if p := (*panicError)(nil); errors.As(c.Err, &p) {
		attrs = append(attrs, slog.String("stack", p.stack))
	}
	log.LogAttrs(ctx, e.Level(), "call failed", attrs...)
}
