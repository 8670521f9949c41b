// Package apierror is the error contract: one table with the public answer for each reason, on both
// transports, and one function, From, that maps an error to a reason.
package apierror

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"log/slog"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
)

// An unauthenticated answer names the scheme to use in this header (RFC 9110, section 11.6.1).
const (
	ChallengeHeader = "www-authenticate"
	Challenge       = "JWT"
)

// PushbackTrailer tells the retry policy of a gRPC client how many milliseconds to wait before the
// next attempt, or to make none (gRFC A6).
const PushbackTrailer = "grpc-retry-pushback-ms"

// errorDomain is the domain of every ErrorInfo that this service sends.
const errorDomain = "ephemeraltoken.forsta.io"

// defaultRetryDelay is the delay in RetryInfo if Atlas named none.
const defaultRetryDelay = time.Second

// Reason is what callers branch on. The proto documents each.
type Reason = ephemeraltokenv1.ErrorReason

// Short names of the reasons.
const (
	CredentialMissing         = ephemeraltokenv1.ErrorReason_ERROR_REASON_CREDENTIAL_MISSING
	CredentialMalformed       = ephemeraltokenv1.ErrorReason_ERROR_REASON_CREDENTIAL_MALFORMED
	CredentialAmbiguous       = ephemeraltokenv1.ErrorReason_ERROR_REASON_CREDENTIAL_AMBIGUOUS
	CredentialRejected        = ephemeraltokenv1.ErrorReason_ERROR_REASON_CREDENTIAL_REJECTED
	ServiceCredentialRejected = ephemeraltokenv1.ErrorReason_ERROR_REASON_SERVICE_CREDENTIAL_REJECTED
	AtlasForbidden            = ephemeraltokenv1.ErrorReason_ERROR_REASON_ATLAS_FORBIDDEN
	AtlasRoute                = ephemeraltokenv1.ErrorReason_ERROR_REASON_ATLAS_ROUTE
	AtlasConflict             = ephemeraltokenv1.ErrorReason_ERROR_REASON_ATLAS_CONFLICT
	AtlasRateLimited          = ephemeraltokenv1.ErrorReason_ERROR_REASON_ATLAS_RATE_LIMITED
	AtlasUnreachable          = ephemeraltokenv1.ErrorReason_ERROR_REASON_ATLAS_UNREACHABLE
	AtlasTLS                  = ephemeraltokenv1.ErrorReason_ERROR_REASON_ATLAS_TLS
	AtlasTimeout              = ephemeraltokenv1.ErrorReason_ERROR_REASON_ATLAS_TIMEOUT
	AtlasUnavailable          = ephemeraltokenv1.ErrorReason_ERROR_REASON_ATLAS_UNAVAILABLE
	AtlasRedirect             = ephemeraltokenv1.ErrorReason_ERROR_REASON_ATLAS_REDIRECT
	AtlasInvalidResponse      = ephemeraltokenv1.ErrorReason_ERROR_REASON_ATLAS_INVALID_RESPONSE
	DeleteOutcomeUnknown      = ephemeraltokenv1.ErrorReason_ERROR_REASON_DELETE_OUTCOME_UNKNOWN
	DeadlineExceeded          = ephemeraltokenv1.ErrorReason_ERROR_REASON_DEADLINE_EXCEEDED
	Cancelled                 = ephemeraltokenv1.ErrorReason_ERROR_REASON_CANCELLED
	Overloaded                = ephemeraltokenv1.ErrorReason_ERROR_REASON_OVERLOADED
	RequestMalformed          = ephemeraltokenv1.ErrorReason_ERROR_REASON_REQUEST_MALFORMED
	RequestTooLarge           = ephemeraltokenv1.ErrorReason_ERROR_REASON_REQUEST_TOO_LARGE
	HeadersTooLarge           = ephemeraltokenv1.ErrorReason_ERROR_REASON_HEADERS_TOO_LARGE
	UnsupportedMediaType      = ephemeraltokenv1.ErrorReason_ERROR_REASON_UNSUPPORTED_MEDIA_TYPE
	RouteNotFound             = ephemeraltokenv1.ErrorReason_ERROR_REASON_ROUTE_NOT_FOUND
	MethodNotAllowed          = ephemeraltokenv1.ErrorReason_ERROR_REASON_METHOD_NOT_ALLOWED
	Internal                  = ephemeraltokenv1.ErrorReason_ERROR_REASON_INTERNAL
	CallerRejected            = ephemeraltokenv1.ErrorReason_ERROR_REASON_CALLER_REJECTED
	CallerUnknown             = ephemeraltokenv1.ErrorReason_ERROR_REASON_CALLER_UNKNOWN
	CallerNotPermitted        = ephemeraltokenv1.ErrorReason_ERROR_REASON_CALLER_NOT_PERMITTED
	CallerCheckUnavailable    = ephemeraltokenv1.ErrorReason_ERROR_REASON_CALLER_CHECK_UNAVAILABLE
	ShuttingDown              = ephemeraltokenv1.ErrorReason_ERROR_REASON_SHUTTING_DOWN
)

// answer is the public answer for a reason. All texts are fixed, so none can contain a secret.
type answer struct {
	code    codes.Code
	http    int
	retry   bool       // another attempt may succeed: there is a RetryInfo
	level   slog.Level // of the log line
	message string
}

// The levels of log lines.
const (
	onCaller   = slog.LevelInfo  // the caller made a mistake, or gave up
	transient  = slog.LevelWarn  // it may pass by itself
	onOperator = slog.LevelError // it lasts until this service, its settings or Atlas are corrected
)

var answers = map[Reason]answer{
	CredentialMissing:         {codes.Unauthenticated, http.StatusUnauthorized, false, onCaller, "no credential: show a client certificate or a token that this service trusts, or send `authorization: JWT <jwt>` with an Atlas JWT"},
	CredentialMalformed:       {codes.Unauthenticated, http.StatusUnauthorized, false, onCaller, "the authorization value must be `JWT <jwt>` or `Bearer <jwt>`, with a JWT of three base64url parts joined by dots"},
	CredentialAmbiguous:       {codes.InvalidArgument, http.StatusBadRequest, false, onCaller, "the call carries more than one credential: send one authorization value, and no Atlas JWT where this service holds the identity"},
	CredentialRejected:        {codes.Unauthenticated, http.StatusUnauthorized, false, onCaller, "Atlas refused the credential: log in to Atlas again for a fresh JWT"},
	ServiceCredentialRejected: {codes.Unavailable, http.StatusServiceUnavailable, true, onOperator, "Atlas refused this service's own credential: contact its operator"},
	AtlasForbidden:            {codes.PermissionDenied, http.StatusForbidden, false, onCaller, "Atlas does not permit this for the credential"},
	AtlasRoute:                {codes.Unimplemented, http.StatusNotImplemented, false, onOperator, "Atlas does not know this operation: the operator has to check the Atlas URL"},
	AtlasConflict:             {codes.Aborted, http.StatusConflict, false, onCaller, "Atlas reports a conflict with another change"},
	AtlasRateLimited:          {codes.ResourceExhausted, http.StatusTooManyRequests, true, transient, "Atlas is throttling this credential: wait before the next call"},
	AtlasUnreachable:          {codes.Unavailable, http.StatusServiceUnavailable, true, transient, "Atlas could not be reached"},
	AtlasTLS:                  {codes.Unavailable, http.StatusServiceUnavailable, true, onOperator, "Atlas's certificate could not be verified"},
	AtlasTimeout:              {codes.Unavailable, http.StatusServiceUnavailable, true, transient, "Atlas did not answer in time"},
	AtlasUnavailable:          {codes.Unavailable, http.StatusServiceUnavailable, true, transient, "Atlas failed to answer"},
	AtlasRedirect:             {codes.Unknown, http.StatusInternalServerError, false, onOperator, "Atlas answered with a redirect, which is not followed"},
	AtlasInvalidResponse:      {codes.Internal, http.StatusInternalServerError, false, onOperator, "Atlas's answer could not be understood"},
	DeleteOutcomeUnknown:      {codes.Unknown, http.StatusInternalServerError, false, transient, "the delete was sent, but Atlas did not confirm it: the token may or may not be gone"},
	DeadlineExceeded:          {codes.DeadlineExceeded, http.StatusGatewayTimeout, false, onCaller, "the deadline passed before Atlas answered"},
	Cancelled:                 {codes.Canceled, 499, false, onCaller, "the caller cancelled the call"},
	Overloaded:                {codes.ResourceExhausted, http.StatusTooManyRequests, true, transient, "too many calls, of all callers or of this one: wait before the next one"},
	RequestMalformed:          {codes.InvalidArgument, http.StatusBadRequest, false, onCaller, "the request cannot be read: send no body, or `{}` as JSON; a Grpc-Timeout has up to 8 digits and a unit, such as 2S"},
	RequestTooLarge:           {codes.ResourceExhausted, http.StatusRequestEntityTooLarge, false, onCaller, "the request is larger than 64 KiB"},
	HeadersTooLarge:           {codes.ResourceExhausted, http.StatusRequestHeaderFieldsTooLarge, false, onCaller, "the headers are larger than 16 KiB"},
	UnsupportedMediaType:      {codes.InvalidArgument, http.StatusUnsupportedMediaType, false, onCaller, "the body must be uncompressed `application/json`"},
	RouteNotFound:             {codes.Unimplemented, http.StatusNotFound, false, onCaller, "there is no such route"},
	MethodNotAllowed:          {codes.Unimplemented, http.StatusMethodNotAllowed, false, onCaller, "the route does not support this method: `Allow` lists those it does"},
	Internal:                  {codes.Internal, http.StatusInternalServerError, false, onOperator, "internal error: it is logged under this call's request id"},
	CallerRejected:            {codes.Unauthenticated, http.StatusUnauthorized, false, onCaller, "the caller's certificate has expired, or its token is not valid here: get a fresh one, a token for this service's audience"},
	CallerUnknown:             {codes.Unauthenticated, http.StatusUnauthorized, false, onCaller, "the caller is unknown: show a client certificate or a token that this service trusts"},
	CallerNotPermitted:        {codes.PermissionDenied, http.StatusForbidden, false, onCaller, "this service's policy does not permit the caller to do this"},
	CallerCheckUnavailable:    {codes.Unavailable, http.StatusServiceUnavailable, true, transient, "the caller's token cannot be checked at present"},
	ShuttingDown:              {codes.Unavailable, http.StatusServiceUnavailable, true, transient, "the service stops and ended the call before Atlas answered: send it again on a new connection"},
}

// Reasons returns all reasons, in no order.
func Reasons() iter.Seq[Reason] { return maps.Keys(answers) }

// Error is the error of a failed call. The reason goes to the caller, the cause only to the log.
type Error struct {
	Reason         Reason
	RetryAfter     time.Duration
	OutcomeUnknown bool // a delete that may have taken effect
	// Hint, if set, replaces the message of the table. It must be a fixed text, without anything of
	// the request or of the cause.
	Hint  string
	Cause error
}

func (e *Error) Error() string { return e.ReasonName() }
func (e *Error) Unwrap() error { return e.Cause }

// ReasonName returns the reason as in ErrorInfo.
func (e *Error) ReasonName() string {
	return strings.TrimPrefix(e.Reason.String(), "ERROR_REASON_")
}

// Code returns the code of GRPCStatus.
func (e *Error) Code() codes.Code { return answers[e.Reason].code }

// HTTPStatus returns the status of the answer over REST.
func (e *Error) HTTPStatus() int { return answers[e.Reason].http }

// Level returns the level of the error's log line.
func (e *Error) Level() slog.Level { return answers[e.Reason].level }

// GRPCStatus returns the public form of the error. grpc-go and the gateway look for this method.
func (e *Error) GRPCStatus() *status.Status {
	a := answers[e.Reason]
	info := &errdetails.ErrorInfo{Reason: e.ReasonName(), Domain: errorDomain}
	if e.OutcomeUnknown {
		info.Metadata = map[string]string{"outcome": "unknown"}
	}
	details := []protoadapt.MessageV1{info}
	if d := e.RetryDelay(); d > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(d)})
	}
	st := status.New(a.code, cmp.Or(e.Hint, a.message))
	if detailed, err := st.WithDetails(details...); err == nil {
		return detailed
	}
	return st // cannot happen: the details are well-formed and the code is not OK
}

// RetryDelay returns how long the caller should wait before it tries again: 0 if it should not try
// again. That includes a delete that may have taken effect.
func (e *Error) RetryDelay() time.Duration {
	switch {
	case !answers[e.Reason].retry || e.OutcomeUnknown:
		return 0
	case e.RetryAfter > 0:
		return e.RetryAfter
	}
	return defaultRetryDelay
}

// Pushback returns the value of PushbackTrailer: RetryDelay, or -1 if there is none. Without
// RetryDelay another attempt fails in the same way, or does harm: a repeated delete could take a
// newer token, and a credential that is refused too often gets its account locked.
func (e *Error) Pushback() string {
	delay := e.RetryDelay()
	if delay == 0 {
		return "-1"
	}
	return strconv.FormatInt(int64((delay+time.Millisecond-1)/time.Millisecond), 10)
}

// authReasons maps the errors of package auth.
var authReasons = []struct {
	err    error
	reason Reason
}{
	{auth.ErrMissing, CredentialMissing},
	{auth.ErrMalformed, CredentialMalformed},
	{auth.ErrAmbiguous, CredentialAmbiguous},
	{auth.ErrCallerRejected, CallerRejected},
	{auth.ErrCertificateExpired, CallerRejected},
	{auth.ErrUnknownCaller, CallerUnknown},
	{auth.ErrNotPermitted, CallerNotPermitted},
	{auth.ErrCallerCheckUnavailable, CallerCheckUnavailable},
}

// From maps an error, which must not be nil, to one of the contract. An unknown error is internal.
func From(err error) *Error {
	var (
		call      *Error
		atlasErr  *atlas.Error
		refused   *atlas.CredentialError
		unsettled *tokencache.UnsettledError
	)
	switch {
	case errors.As(err, &call):
		return call
	case errors.As(err, &unsettled): // before its own cause
		return &Error{Reason: endReason(err, DeleteOutcomeUnknown), OutcomeUnknown: true, Cause: err}
	case errors.As(err, &refused): // before atlasErr, which is its cause
		return &Error{Reason: ServiceCredentialRejected, RetryAfter: refused.RetryAfter, Cause: err}
	case errors.Is(err, atlas.ErrOrgChanged): // nothing was done, and a repeat is for the new org
		return &Error{Reason: ServiceCredentialRejected, Cause: err}
	case errors.As(err, &atlasErr):
		return fromAtlas(atlasErr)
	}
	for _, known := range authReasons {
		if errors.Is(err, known.err) {
			e := &Error{Reason: known.reason, Cause: err}
			if mistake, ok := errors.AsType[*auth.Mistake](err); ok {
				e.Hint = mistake.Advice
			}
			return e
		}
	}
	return &Error{Reason: endReason(err, Internal), Cause: err}
}

// endReason returns the reason of an error of a context that has ended, or else the other reason.
func endReason(err error, otherwise Reason) Reason {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return Cancelled
	}
	return otherwise
}

// kindReasons maps the kinds of errors of Atlas, except for statuses. Others are
// AtlasInvalidResponse.
var kindReasons = map[atlas.Kind]Reason{
	atlas.KindTimeout:           AtlasTimeout,
	atlas.KindUnreachable:       AtlasUnreachable,
	atlas.KindTLS:               AtlasTLS,
	atlas.KindRedirect:          AtlasRedirect,
	atlas.KindInvalidCredential: CredentialMalformed,
	atlas.KindUnavailable:       AtlasUnavailable,
	atlas.KindOverloaded:        Overloaded,
}

// statusReasons maps the statuses of Atlas. From 500 on they are AtlasUnavailable, others
// AtlasInvalidResponse.
var statusReasons = map[int]Reason{
	http.StatusUnauthorized:     CredentialRejected,
	http.StatusForbidden:        AtlasForbidden,
	http.StatusNotFound:         AtlasRoute,
	http.StatusMethodNotAllowed: AtlasRoute,
	http.StatusConflict:         AtlasConflict,
	http.StatusTooManyRequests:  AtlasRateLimited,
}

// fromAtlas maps the error of a call to Atlas. A delete that may have reached Atlas keeps an
// unknown outcome: repeating it could delete a token that was created in between.
func fromAtlas(err *atlas.Error) *Error {
	e := &Error{Cause: err, RetryAfter: err.RetryAfter, Reason: kindReasons[err.Kind]}
	switch {
	case err.Kind == atlas.KindCanceled:
		e.Reason = endReason(err, Cancelled)
	case err.Kind == atlas.KindStatus && err.StatusCode >= 500:
		e.Reason = AtlasUnavailable
	case err.Kind == atlas.KindStatus:
		e.Reason = statusReasons[err.StatusCode]
	}
	e.Reason = cmp.Or(e.Reason, AtlasInvalidResponse)
	if err.OutcomeUnknown() {
		e.OutcomeUnknown = true
		if err.Kind == atlas.KindStatus || !OutcomeMayBeUnknown(e.Reason) {
			e.Reason = DeleteOutcomeUnknown
		}
	}
	return e
}

// OutcomeMayBeUnknown reports whether a delete that fails for this reason may have taken effect:
// always for DeleteOutcomeUnknown, for the others if Error.OutcomeUnknown is set.
func OutcomeMayBeUnknown(reason Reason) bool {
	switch reason {
	case DeleteOutcomeUnknown, Cancelled, DeadlineExceeded, AtlasInvalidResponse:
		return true
	}
	return false
}
