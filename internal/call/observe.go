package call

import (
	"context"
	"errors"
	"log/slog"
	"regexp"
	"strings"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/lograte"
)

// observe gives a call its request id and span, counts it, logs it, sends the metadata of the
// response, and converts any error into one of the public contract. It is outermost, so it sees how
// every call ended.
func observe(ctx context.Context, cfg *Config, method string, serve func(context.Context, *Record) (any, error)) (any, error) {
	start := time.Now()
	ctx, rec := begin(ctx)
	ctx, span := startSpan(ctx, cfg, rec, method)
	counts := cfg.Metrics.begin(rec, method)
	resp, err := serve(ctx, rec)
	took := time.Since(start)
	var failed *apierror.Error
	if err != nil {
		failed = apierror.From(err)
		cfg.Metrics.CountFailure(ctx, failed)
	}
	counts.end(ctx, took, codeOf(failed))
	sendMetadata(ctx, rec, failed)
	Log(ctx, cfg.Logger, method, took, failed)
	audit(ctx, cfg.Audit, rec, method, failed)
	endSpan(span, rec, failed)
	if failed != nil {
		return nil, failed
	}
	return resp, nil
}

// codeOf returns the gRPC code of a call: OK if e is nil.
func codeOf(e *apierror.Error) codes.Code {
	if e == nil {
		return codes.OK
	}
	return e.Code()
}

// sendMetadata sends the metadata of the response: in headers if e is nil, otherwise in trailers. A
// gRPC client does not retry a call once it has received headers (gRFC A6).
func sendMetadata(ctx context.Context, rec *Record, e *apierror.Error) {
	rec.SetMetadata(RequestIDHeader, rec.id)
	// SetHeader and SetTrailer fail only after the response has begun.
	switch {
	case rec.rest != nil: // which writes the headers of errors itself
		rec.rest.respond(rec.response)
		return
	case e == nil:
		_ = grpc.SetHeader(ctx, rec.response)
		return
	}
	if e.Code() == codes.Unauthenticated {
		rec.SetMetadata(apierror.ChallengeHeader, apierror.Challenge)
	}
	rec.SetMetadata(apierror.PushbackTrailer, e.Pushback())
	_ = grpc.SetTrailer(ctx, rec.response)
}

// NewRefusal returns a function that logs and counts a call that is refused before the chain, and
// returns its error. The method is for the log and must not come from the caller, because it could
// contain a secret.
func NewRefusal(log *slog.Logger, metrics *Metrics) func(ctx context.Context, method string, reason apierror.Reason) error {
	cfg := &Config{Logger: log, Audit: slog.New(slog.DiscardHandler), Metrics: metrics, Propagator: propagation.TraceContext{}}
	return func(ctx context.Context, method string, reason apierror.Reason) error {
		_, err := observe(ctx, cfg, method, func(context.Context, *Record) (any, error) {
			return nil, &apierror.Error{Reason: reason}
		})
		return err
	}
}

// Log writes the one line of a call or of a REST request that did not become one: at level debug if
// e is nil, otherwise at the level of its reason and limited per reason. The cause of an error is
// written only here. method is the full gRPC method, or verb and path of the request.
func Log(ctx context.Context, log *slog.Logger, method string, took time.Duration, e *apierror.Error) {
	level := slog.LevelDebug
	if e != nil {
		level, log = e.Level(), lograte.Kind(log, e.ReasonName())
	}
	if !log.Enabled(ctx, level) {
		return
	}
	rec := RecordFrom(ctx)
	attrs := []slog.Attr{
		slog.String("method", method),
		slog.String("request_id", rec.id),
		slog.Float64("duration_ms", float64(took.Microseconds())/1000),
		slog.String("transport", rec.transport()),
	}
	if address := peerAddress(ctx); address != "" {
		attrs = append(attrs, slog.String("peer", address))
	}
	if rec.grant.Caller.Kind != "" {
		attrs = append(attrs, callerAttr(rec.grant.Caller))
	}
	agent := metadata.ValueFromIncomingContext(ctx, "user-agent")
	if rec.rest != nil {
		agent = rec.rest.userAgent
	}
	if agent := userAgent(agent); agent != "" {
		attrs = append(attrs, slog.String("user_agent", agent))
	}
	if id := traceID(ctx); id != "" {
		attrs = append(attrs, slog.String("trace_id", id))
	}
	attrs = append(attrs, slog.String("code", codeOf(e).String()))
	if e == nil {
		log.LogAttrs(ctx, level, "call", attrs...)
		return
	}
	attrs = append(attrs, slog.String("reason", e.ReasonName()))
	if e.Cause != nil {
		attrs = append(attrs, slog.String("cause", e.Cause.Error()))
	}
	if p, ok := errors.AsType[*panicError](e); ok {
		attrs = append(attrs, slog.String("stack", p.stack))
	}
	log.LogAttrs(ctx, level, "call failed", attrs...)
}

// audit writes the one audit record of a call: who did what, as whom, with what outcome. It never
// contains a token or a JWT. A REST request that does not become a call has none.
func audit(ctx context.Context, log *slog.Logger, rec *Record, method string, e *apierror.Error) {
	if !log.Enabled(ctx, slog.LevelInfo) {
		return
	}
	outcome := codes.OK.String()
	if e != nil {
		outcome = e.ReasonName()
	}
	log.LogAttrs(ctx, slog.LevelInfo, "call",
		callerAttr(rec.grant.Caller),
		slog.String("method", method[strings.LastIndexByte(method, '/')+1:]),
		slog.String("profile", rec.grant.Profile),
		slog.String("org", rec.Org),
		slog.String("outcome", outcome),
		slog.String("cache", rec.Cache),
		slog.String("request_id", rec.id),
		slog.String("trace_id", traceID(ctx)),
		slog.String("peer", peerAddress(ctx)),
	)
}

func callerAttr(c auth.Caller) slog.Attr {
	return slog.Group("caller", slog.String("kind", c.Kind), slog.String("name", c.Name))
}

func peerAddress(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}

// maxUserAgent limits the user agent in a log line, in bytes.
const maxUserAgent = 128

// secretLike matches the beginning of a JWT, or a word as long as a token.
var secretLike = regexp.MustCompile(`eyJ|[A-Za-z0-9_-]{32}`)

// userAgent returns a user agent for a log line: printable ASCII, and nothing like a secret, which
// a caller may have put into the wrong header.
func userAgent(values []string) string {
	agent := strings.Join(values, ", ")
	if secretLike.MatchString(agent) {
		return "(withheld: it looks like a secret)"
	}
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, agent[:min(len(agent), maxUserAgent)])
}
