package server

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
		ctx, id := ensureRequestID(ctx)
		ctx, rec := withRecord(ctx)
		resp, err := handler(ctx, req)
		headers := metadata.Pairs(requestIDHeader, id)
		if err != nil && apierror.From(err).GRPCStatus().Code() == codes.Unauthenticated {
			headers.Set(apierror.ChallengeHeader, apierror.Challenge)
		}
		// It fails only if the headers have gone out already, and nothing sends them before this.
		_ = grpc.SetHeader(ctx, headers)
		c := call{method: info.FullMethod, requestID: id, duration: time.Since(start), err: err}
		logCall(ctx, log, c)
		auditCall(ctx, audit, c, rec)
		return resp, err
	}
}

// call is what the log says about one call.
type call struct {
	method    string // full gRPC method, or verb and path of a REST request that never became a call
	requestID string
	duration  time.Duration
	err       error
}

// logCall leaves one line: at level debug if it went well, else at the level of its reason. The cause of an error is here and
// nowhere else.
func logCall(ctx context.Context, log *slog.Logger, c call) {
	if c.err == nil && !log.Enabled(ctx, slog.LevelDebug) {
		return // most calls: nothing is put together that nobody reads
	}
	attrs := []slog.Attr{
		slog.String("method", c.method),
		slog.String("request_id", c.requestID),
		slog.Float64("duration_ms", float64(c.duration.Microseconds())/1000),
	}
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		attrs = append(attrs, slog.String("peer", p.Addr.String()))
	}
	if c.err == nil {
		attrs = append(attrs, slog.String("code", codes.OK.String()))
		log.LogAttrs(ctx, slog.LevelDebug, "call", attrs...)
		return
	}
	e := apierror.From(c.err)
	attrs = append(attrs, slog.String("code", e.GRPCStatus().Code().String()), slog.String("reason", e.ReasonName()))
	if e.Cause != nil {
		attrs = append(attrs, slog.String("cause", e.Cause.Error()))
	}
	if p := (*panicError)(nil); errors.As(c.err, &p) {
		attrs = append(attrs, slog.String("stack", p.stack))
	}
	log.LogAttrs(ctx, e.Level(), "call failed", attrs...)
}
