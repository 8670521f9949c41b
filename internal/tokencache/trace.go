package tokencache

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// callTrace is the span of a shared call, which has several causes and can have one parent. That is
// the first waiter, so that the trace of a call that is not shared is one tree from the caller to
// Atlas; the span links to the others. The links are there at its start, for samplers to see. Each
// of the other waiters links back to it, so that the call can be found from any waiter's trace.
type callTrace struct {
	waiters []trace.Link // guarded by group.mu; the parent first, and a bounded number of others
	span    trace.Span   // guarded by group.mu; nil before the call begins, and without a tracer
}

// maxLinks is how many waiters a span links to: as many as the SDK keeps by default.
const maxLinks = 128

// joined notes another waiter. A waiter that is sampled takes the place of a first one that is not:
// below that one the call would not be seen. The caller holds group.mu.
func (t *callTrace) joined(ctx context.Context) {
	waiter := trace.LinkFromContext(ctx)
	sampled := waiter.SpanContext.IsSampled()
	switch {
	case !waiter.SpanContext.IsValid():
	case len(t.waiters) == 0:
		t.waiters = append(t.waiters, waiter)
	case sampled && !t.waiters[0].SpanContext.IsSampled():
		t.waiters[0] = waiter
	case sampled && len(t.waiters) <= maxLinks:
		t.waiters = append(t.waiters, waiter)
	}
}

// begin begins the span of a call, unless tracer is nil. The caller holds group.mu.
func (t *callTrace) begin(ctx context.Context, tracer trace.Tracer, waiters int) context.Context {
	if tracer == nil {
		return ctx
	}
	opts := []trace.SpanStartOption{trace.WithAttributes(attribute.Int("tokend.waiters", waiters))}
	if len(t.waiters) > 0 {
		ctx = trace.ContextWithSpanContext(ctx, t.waiters[0].SpanContext)
		opts = append(opts, trace.WithLinks(t.waiters[1:]...))
	}
	ctx, t.span = tracer.Start(ctx, "shared CreateToken", opts...)
	return ctx
}

// end ends the span, if there is one.
func (t *callTrace) end(result Result, err error) {
	if t.span == nil {
		return
	}
	t.span.SetAttributes(attribute.String("tokend.cache", result.Status.String()))
	if err != nil {
		t.span.SetAttributes(attribute.String("error.type", errorType(err)))
		t.span.SetStatus(codes.Error, "")
	}
	t.span.End()
}

// linkTo links a waiter's span to that of its call, once that has one.
func (g *group) linkTo(ctx context.Context, c *call) {
	if g.tracer == nil {
		return
	}
	g.mu.Lock()
	t := c.trace
	g.mu.Unlock()
	waiter := trace.SpanFromContext(ctx)
	if t.span != nil && len(t.waiters) > 0 && !waiter.SpanContext().Equal(t.waiters[0].SpanContext) {
		waiter.AddLink(trace.Link{SpanContext: t.span.SpanContext()})
	}
}

// errorType returns the kind of an error. Its text is for the log.
func errorType(err error) string {
	if e, ok := errors.AsType[*atlas.Error](err); ok {
		return string(e.Kind)
	}
	if _, ok := errors.AsType[*atlas.CredentialError](err); ok {
		return "credential"
	}
	return "_OTHER"
}
