package call

import (
	"context"
	"crypto/rand"
	"net/http"
	"strings"

	"google.golang.org/grpc/metadata"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
)

// Record collects what the log and the audit record say about a call, and the metadata of its
// response. It travels in the call's context; one goroutine at a time uses it.
type Record struct {
	id       string
	rest     *restCall // nil over gRPC
	grant    auth.Grant
	response metadata.MD

	Org   string // UUID; known only for a JWT that Atlas has accepted
	Cache string // for a create: the value of Cache-Status
	// NoAtlasCall is set if the call caused no call to Atlas.
	NoAtlasCall bool
}

// restCall is the part of a Record that only a call over REST has.
type restCall struct {
	userAgent []string
	respond   func(metadata.MD)
	forbidden error
}

type recordKey struct{}

// WithREST starts the record of a call over REST with the given headers. The chain passes the
// metadata of the response to respond before it returns.
func WithREST(ctx context.Context, header http.Header, respond func(metadata.MD)) (context.Context, *Record) {
	rec := &Record{
		id:   chooseRequestID(header.Values(RequestIDHeader)),
		rest: &restCall{userAgent: header.Values("User-Agent"), respond: respond},
	}
	return context.WithValue(ctx, recordKey{}, rec), rec
}

// begin returns the record of a call that enters the chain. Over REST it exists already.
func begin(ctx context.Context) (context.Context, *Record) {
	if rec, ok := ctx.Value(recordKey{}).(*Record); ok {
		return ctx, rec
	}
	rec := &Record{id: chooseRequestID(metadata.ValueFromIncomingContext(ctx, RequestIDHeader))}
	return context.WithValue(ctx, recordKey{}, rec), rec
}

// RecordFrom returns the record of the call, or an empty one outside the chain.
func RecordFrom(ctx context.Context) *Record {
	if rec, ok := ctx.Value(recordKey{}).(*Record); ok {
		return rec
	}
	return &Record{}
}

// RequestID returns the call's id.
func (r *Record) RequestID() string { return r.id }

// Grant returns the result of authentication.
func (r *Record) Grant() auth.Grant { return r.grant }

// Forbid makes the chain refuse a call over REST with this reason after authenticating it, so that
// the audit record names the caller.
func (r *Record) Forbid(reason *apierror.Error) { r.rest.forbidden = reason }

// SetMetadata sets a value in the metadata of the response. The name is in lower case.
func (r *Record) SetMetadata(name, value string) {
	if r.response == nil {
		r.response = metadata.MD{}
	}
	r.response[name] = []string{value}
}

// The values of the label transport.
const (
	overGRPC = "grpc"
	overREST = "rest"
)

func (r *Record) transport() string {
	if r.rest != nil {
		return overREST
	}
	return overGRPC
}

// RequestIDHeader carries a call's id in and out, over both transports.
const RequestIDHeader = "x-request-id"

// maxRequestID limits a caller's request id, in bytes.
const maxRequestID = 128

// chooseRequestID returns the caller's request id if it is fit for a log line, or a new one.
func chooseRequestID(values []string) string {
	if len(values) == 1 && isRequestID(values[0]) {
		return values[0]
	}
	return rand.Text()
}

// isRequestID accepts the characters of UUIDs, ULIDs and trace ids. A JWT in the wrong header has
// the same characters, so it refuses three parts joined by dots.
func isRequestID(s string) bool {
	if s == "" || len(s) > maxRequestID || strings.Count(s, ".") >= 2 {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-_.:/+=", c) >= 0) {
			return false
		}
	}
	return true
}
