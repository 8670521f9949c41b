// Package call has the interceptor that every call runs through, over gRPC and over REST. It
// produces the call's log line, its audit record, its metrics and the metadata of its response. The
// package knows no method by name, and is the only place where a caller is authenticated.
package call

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
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

// chain is what every call runs through.
type chain struct {
	Config

	callers *callers
}

// New returns the chain. Both transports must share one, so that they share its limits.
func New(cfg Config) grpc.UnaryServerInterceptor {
	cfg.CutOff = cmp.Or(cfg.CutOff, context.Background())
	cfg.Propagator = cmp.Or[propagation.TextMapPropagator](cfg.Propagator, propagation.TraceContext{})
	c := &chain{cfg, newCallers(int(cfg.MaxCalls), cfg.CallerRate)}
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		return observe(ctx, &c.Config, info.FullMethod, func(ctx context.Context, rec *Record) (any, error) {
			return c.serve(ctx, rec, info.FullMethod, func(ctx context.Context) (any, error) { return handler(ctx, req) })
		})
	}
}

// serve runs the handler of a call: in time, with a caller who may call it, and within the caller's
// limits.
func (c *chain) serve(ctx context.Context, rec *Record, method string, handler func(context.Context) (any, error)) (resp any, err error) {
	defer Recover(&err)
	limited, err := limit(ctx, c.Ceiling, c.CutOff)
	if err != nil {
		return nil, err
	}
	defer func() {
		limited.stop()
		err = limited.explain(err)
	}()
	if err := c.authenticate(limited, rec, method); err != nil {
		return nil, err
	}
	by := c.callers.identify(rec.grant)
	if limit := c.callers.enter(by, time.Now()); limit != "" {
		c.Refused(limit)
		return nil, &apierror.Error{Reason: apierror.Overloaded, Cause: fmt.Errorf("limit of calls: %s", limit)}
	}
	succeeded := false // stays false after a panic
	defer func() { c.callers.leave(by, succeeded, rec.NoAtlasCall, time.Now()) }()
	resp, err = handler(limited)
	succeeded = err == nil
	return resp, err
}

// authenticate identifies the caller and the credential to use at Atlas.
func (c *chain) authenticate(ctx context.Context, rec *Record, method string) error {
	grant, err := c.Auth.Authenticate(ctx, method)
	if err == nil && rec.rest != nil && rec.rest.forbidden != nil {
		grant, err = auth.Grant{Caller: grant.Caller}, rec.rest.forbidden
	}
	rec.grant = grant // set for a refused call too: the log and the audit record name the caller
	return err
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
