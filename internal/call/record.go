package call

import (
	"context"
	"net/http"

	"google.golang.org/grpc/metadata"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/headers"
)

// Record is what the log and the audit say about a call, and the metadata of its answer. It is filled in while the call passes the
// chain, by one goroutine at a time.
type Record struct {
	id     string
	rest   *restCall // nil over gRPC
	grant  auth.Grant
	answer metadata.MD

	Org   string // UUID; known only for a JWT that Atlas has accepted
	Cache string // of a create: where its answer comes from, as in Cache-Status
	Free  bool   // Atlas had nothing to do for it
}

type recordKey struct{}

// restCall is what is different about a call that comes over REST.
type restCall struct {
	received  http.Header // all of them: not all are for package headers
	answer    func(metadata.MD)
	forbidden error
}

// WithREST begins the record of a call that comes over REST with these headers. The metadata of its answer goes to answer, before
// the call returns.
func WithREST(ctx context.Context, received http.Header, answer func(metadata.MD)) (context.Context, *Record) {
	rec := &Record{rest: &restCall{received: received, answer: answer}, id: chooseRequestID(received.Values(RequestIDHeader))}
	return context.WithValue(ctx, recordKey{}, rec), rec
}

// Forbid makes the chain refuse the call, which has come over REST, for this reason, once its caller is known.
func (r *Record) Forbid(reason *apierror.Error) { r.rest.forbidden = reason }

// begin returns the record of a call that enters the chain, with the context to go on with. REST has begun it already.
func begin(ctx context.Context) (context.Context, *Record) {
	if rec, ok := ctx.Value(recordKey{}).(*Record); ok {
		return ctx, rec
	}
	rec := &Record{id: chooseRequestID(headers.Values(ctx, RequestIDHeader))}
	return context.WithValue(ctx, recordKey{}, rec), rec
}

// RecordFrom returns the call's record; outside the chain, an empty one.
func RecordFrom(ctx context.Context) *Record {
	if rec, ok := ctx.Value(recordKey{}).(*Record); ok {
		return rec
	}
	return &Record{}
}

// RequestID returns the call's id.
func (r *Record) RequestID() string { return r.id }

// Grant returns what the chain has found out about the caller.
func (r *Record) Grant() auth.Grant { return r.grant }

// SetMetadata puts a value into the metadata of the call's answer. Names are in lower case.
func (r *Record) SetMetadata(name, value string) {
	if r.answer == nil {
		r.answer = metadata.MD{}
	}
	r.answer[name] = []string{value}
}
