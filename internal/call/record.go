package call

import (
	"context"
	"net/http"

	"google.golang.org/grpc/metadata"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/headers"
)

// Record is what is known about a call, and what is found out on its way in: for the log and the audit, and for the metadata of its
// answer. It is the context that the call goes on with, so that all of it is found in one place.
type Record struct {
	context.Context

	id     string
	rest   *restCall // nil over gRPC
	grant  auth.Grant
	answer metadata.MD
	values [4]string // of most answers, which have one value for each name

	Org   string // UUID; known only for a JWT that Atlas has accepted
	Cache string // of a create: where its answer comes from, as in Cache-Status
	Free  bool   // Atlas had nothing to do for it
}

type recordKey struct{}

// Value implements context.Context.
func (r *Record) Value(key any) any {
	if key == (recordKey{}) {
		return r
	}
	return r.Context.Value(key)
}

// restCall is what is different about a call that comes over REST.
type restCall struct {
	received  http.Header // all of them: not all are for package headers
	answer    func(metadata.MD)
	forbidden error
}

// WithREST begins the record of a call that comes over REST with these headers. The metadata of its answer goes to answer, before
// the call returns.
func WithREST(ctx context.Context, received http.Header, answer func(metadata.MD)) *Record {
	return &Record{Context: ctx, rest: &restCall{received: received, answer: answer}, id: chooseRequestID(received.Values(RequestIDHeader))}
}

// Forbid has the call, which has come over REST, refused for this reason as soon as it is known whose it is.
func (r *Record) Forbid(reason *apierror.Error) { r.rest.forbidden = reason }

// begin returns the record of a call that enters the chain, with the context to go on with. The front of REST has begun it already.
func begin(ctx context.Context) (context.Context, *Record) {
	if rec, ok := ctx.Value(recordKey{}).(*Record); ok {
		return ctx, rec
	}
	rec := &Record{Context: ctx, id: chooseRequestID(headers.Values(ctx, RequestIDHeader))}
	return rec, rec
}

// RecordFrom returns the call's record; outside the chain, one that nobody reads.
func RecordFrom(ctx context.Context) *Record {
	if rec, ok := ctx.Value(recordKey{}).(*Record); ok {
		return rec
	}
	return &Record{Context: ctx}
}

// RequestID is the call's id.
func (r *Record) RequestID() string { return r.id }

// Grant is what the chain has found about the caller, for whatever runs inside of it.
func (r *Record) Grant() auth.Grant { return r.grant }

// SetMetadata puts a value into the metadata of the call's answer. Names are in lower case.
func (r *Record) SetMetadata(name, value string) {
	if r.answer == nil {
		r.answer = make(metadata.MD, len(r.values))
	}
	if n := len(r.answer); n < len(r.values) && r.answer[name] == nil {
		r.values[n] = value
		r.answer[name] = r.values[n : n+1 : n+1]
		return
	}
	r.answer[name] = []string{value}
}
