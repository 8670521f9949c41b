package call

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
	"github.com/ForstaLabs/ephemeral-token-service/internal/lograte"
)

// observe gives every call its request id and a span, counts it, and leaves one log line about it. The metadata of every answer goes
// out here and nowhere else, since this is the outermost place, which sees how each call ended.
func observe(log, audit *slog.Logger, metrics *Metrics, traces *tracing) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		start := time.Now()
		ctx, rec := begin(ctx)
		ctx, span := traces.start(ctx, info.FullMethod)
		counted := metrics.begin(ctx, info.FullMethod)
		resp, err := handler(ctx, req)
		rec.SetMetadata(RequestIDHeader, rec.id)
		o := Outcome{Method: info.FullMethod, RequestID: rec.id, Duration: time.Since(start), Err: err}
		code, failed := codes.OK, (*apierror.Error)(nil)
		if err != nil {
			failed = apierror.From(err)
			code = failed.Code()
			metrics.CountFailure(ctx, failed)
		}
		counted(o.Duration, code)
		sendMetadata(ctx, rec, failed)
		Log(ctx, log, o)
		auditCall(ctx, audit, o, rec)
		endSpan(span, rec, err)
		return resp, err
	}
}

// sendMetadata sends what the call's answer tells beside its message: in headers if it went well and e is nil, in trailers if not.
// To a client a call with headers is one that was answered, and its retry policy never looks at it again (gRFC A6), so an
// error has none at all.
func sendMetadata(ctx context.Context, rec *Record, e *apierror.Error) {
	// Neither fails unless the answer has begun already, and nothing begins it before this.
	switch {
	case rec.rest != nil: // which has but headers, and its own of errors
		rec.rest.answer(rec.answer)
		return
	case e == nil:
		_ = grpc.SetHeader(ctx, rec.answer)
		return
	}
	if e.Code() == codes.Unauthenticated {
		rec.SetMetadata(apierror.ChallengeHeader, apierror.Challenge)
	}
	rec.SetMetadata(apierror.PushbackTrailer, e.Pushback())
	_ = grpc.SetTrailer(ctx, rec.answer)
}

// NewRefusal returns a function that answers calls which do not reach the chain: it logs, counts and returns the error of
// a reason. method is what the log calls the method; it must not come from the caller, who may have put a secret there.
func NewRefusal(log *slog.Logger, metrics *Metrics) func(ctx context.Context, method string, reason apierror.Reason) error {
	observed := observe(log, slog.New(slog.DiscardHandler), metrics, nil)
	return func(ctx context.Context, method string, reason apierror.Reason) error {
		_, err := observed(ctx, nil, &grpc.UnaryServerInfo{FullMethod: method}, func(context.Context, any) (any, error) {
			return nil, &apierror.Error{Reason: reason}
		})
		return err
	}
}

// Outcome is what the log says about one call.
type Outcome struct {
	Method    string // full gRPC method, or verb and path of a REST request that never became a call
	RequestID string
	Duration  time.Duration
	Err       error
}

// Log leaves one line: at level debug if it went well, else at the level of its reason, as far as the log has room for lines of
// that reason. The cause of an error is here and nowhere else.
func Log(ctx context.Context, log *slog.Logger, o Outcome) {
	level, e := slog.LevelDebug, (*apierror.Error)(nil)
	if o.Err != nil {
		e = apierror.From(o.Err)
		level, ctx = e.Level(), lograte.WithKind(ctx, e.ReasonName())
	}
	if !log.Enabled(ctx, level) {
		return // most calls, and floods: nothing is put together that nobody reads
	}
	attrs := append([]slog.Attr{
		slog.String("method", o.Method),
		slog.String("request_id", o.RequestID),
		slog.Float64("duration_ms", float64(o.Duration.Microseconds())/1000),
	}, origin(ctx)...)
	if o.Err == nil {
		attrs = append(attrs, slog.String("code", codes.OK.String()))
		log.LogAttrs(ctx, slog.LevelDebug, "call", attrs...)
		return
	}
	attrs = append(attrs, slog.String("code", e.Code().String()), slog.String("reason", e.ReasonName()))
	if e.Cause != nil {
		attrs = append(attrs, slog.String("cause", e.Cause.Error()))
	}
	if p := (*panicError)(nil); errors.As(o.Err, &p) {
		attrs = append(attrs, slog.String("stack", p.stack))
	}
	log.LogAttrs(ctx, level, "call failed", attrs...)
}
