package server

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/server/auth"
	"github.com/ForstaLabs/ephemeral-token-service/server/tokencache"
)

// errorDomain is the domain of every ErrorInfo that this service sends.
const errorDomain = "ephemeraltoken.forsta.io"

// defaultRetryDelay is what RetryInfo says when Atlas named no delay of its own.
const defaultRetryDelay = time.Second

type reason = ephemeraltokenv1.ErrorReason

// Aliases, so that the table below can be read.
const (
	reasonCredentialMissing    = ephemeraltokenv1.ErrorReason_ERROR_REASON_CREDENTIAL_MISSING
	reasonCredentialMalformed  = ephemeraltokenv1.ErrorReason_ERROR_REASON_CREDENTIAL_MALFORMED
	reasonCredentialAmbiguous  = ephemeraltokenv1.ErrorReason_ERROR_REASON_CREDENTIAL_AMBIGUOUS
	reasonCredentialRejected   = ephemeraltokenv1.ErrorReason_ERROR_REASON_CREDENTIAL_REJECTED
	reasonServiceCredential    = ephemeraltokenv1.ErrorReason_ERROR_REASON_SERVICE_CREDENTIAL_REJECTED
	reasonAtlasForbidden       = ephemeraltokenv1.ErrorReason_ERROR_REASON_ATLAS_FORBIDDEN
	reasonAtlasRoute           = ephemeraltokenv1.ErrorReason_ERROR_REASON_ATLAS_ROUTE
	reasonAtlasConflict        = ephemeraltokenv1.ErrorReason_ERROR_REASON_ATLAS_CONFLICT
	reasonAtlasRateLimited     = ephemeraltokenv1.ErrorReason_ERROR_REASON_ATLAS_RATE_LIMITED
	reasonAtlasUnreachable     = ephemeraltokenv1.ErrorReason_ERROR_REASON_ATLAS_UNREACHABLE
	reasonAtlasTLS             = ephemeraltokenv1.ErrorReason_ERROR_REASON_ATLAS_TLS
	reasonAtlasTimeout         = ephemeraltokenv1.ErrorReason_ERROR_REASON_ATLAS_TIMEOUT
	reasonAtlasUnavailable     = ephemeraltokenv1.ErrorReason_ERROR_REASON_ATLAS_UNAVAILABLE
	reasonAtlasRedirect        = ephemeraltokenv1.ErrorReason_ERROR_REASON_ATLAS_REDIRECT
	reasonAtlasInvalidResponse = ephemeraltokenv1.ErrorReason_ERROR_REASON_ATLAS_INVALID_RESPONSE
	reasonDeleteUnknown        = ephemeraltokenv1.ErrorReason_ERROR_REASON_DELETE_OUTCOME_UNKNOWN
	reasonDeadlineExceeded     = ephemeraltokenv1.ErrorReason_ERROR_REASON_DEADLINE_EXCEEDED
	reasonCancelled            = ephemeraltokenv1.ErrorReason_ERROR_REASON_CANCELLED
	reasonOverloaded           = ephemeraltokenv1.ErrorReason_ERROR_REASON_OVERLOADED
	reasonRequestMalformed     = ephemeraltokenv1.ErrorReason_ERROR_REASON_REQUEST_MALFORMED
	reasonRequestTooLarge      = ephemeraltokenv1.ErrorReason_ERROR_REASON_REQUEST_TOO_LARGE
	reasonHeadersTooLarge      = ephemeraltokenv1.ErrorReason_ERROR_REASON_HEADERS_TOO_LARGE
	reasonUnsupportedMedia     = ephemeraltokenv1.ErrorReason_ERROR_REASON_UNSUPPORTED_MEDIA_TYPE
	reasonRouteNotFound        = ephemeraltokenv1.ErrorReason_ERROR_REASON_ROUTE_NOT_FOUND
	reasonMethodNotAllowed     = ephemeraltokenv1.ErrorReason_ERROR_REASON_METHOD_NOT_ALLOWED
	reasonInternal             = ephemeraltokenv1.ErrorReason_ERROR_REASON_INTERNAL
	reasonCallerRejected       = ephemeraltokenv1.ErrorReason_ERROR_REASON_CALLER_REJECTED
	reasonCallerUnknown        = ephemeraltokenv1.ErrorReason_ERROR_REASON_CALLER_UNKNOWN
	reasonCallerNotPermitted   = ephemeraltokenv1.ErrorReason_ERROR_REASON_CALLER_NOT_PERMITTED
	reasonCallerCheck          = ephemeraltokenv1.ErrorReason_ERROR_REASON_CALLER_CHECK_UNAVAILABLE
)

// answer is what a caller is told for one reason: fixed, so that nothing of the cause can slip out.
type answer struct {
	code    codes.Code
	http    int
	retry   bool       // waiting helps: RetryInfo and Retry-After
	level   slog.Level // of its log line
	message string
}

// Levels by who has to do something about it.
const (
	onCaller   = slog.LevelInfo  // the caller did something wrong, or gave up
	transient  = slog.LevelWarn  // it may pass by itself
	onOperator = slog.LevelError // it does not pass before somebody mends this service, its settings or Atlas
)

var answers = map[reason]answer{
	reasonCredentialMissing:    {codes.Unauthenticated, http.StatusUnauthorized, false, onCaller, "no credential: show a client certificate or a token that this service trusts, or send `authorization: JWT <jwt>` with an Atlas JWT"},
	reasonCredentialMalformed:  {codes.Unauthenticated, http.StatusUnauthorized, false, onCaller, "the authorization value must be `JWT <jwt>` or `Bearer <jwt>` with an Atlas JWT"},
	reasonCredentialAmbiguous:  {codes.InvalidArgument, http.StatusBadRequest, false, onCaller, "the call carries more than one credential: send one authorization value, and no Atlas JWT where this service holds the identity"},
	reasonCredentialRejected:   {codes.Unauthenticated, http.StatusUnauthorized, false, onCaller, "Atlas refused the credential: log in to Atlas again for a fresh JWT"},
	reasonServiceCredential:    {codes.Unavailable, http.StatusServiceUnavailable, true, onOperator, "Atlas refused this service's own credential: its operator has to look"},
	reasonAtlasForbidden:       {codes.PermissionDenied, http.StatusForbidden, false, onCaller, "Atlas does not permit this for the credential"},
	reasonAtlasRoute:           {codes.Unimplemented, http.StatusNotImplemented, false, onOperator, "Atlas does not know this operation: the operator has to check the Atlas URL"},
	reasonAtlasConflict:        {codes.Aborted, http.StatusConflict, false, onCaller, "Atlas reports a conflict with another change"},
	reasonAtlasRateLimited:     {codes.ResourceExhausted, http.StatusTooManyRequests, true, transient, "Atlas is throttling this credential: wait before the next call"},
	reasonAtlasUnreachable:     {codes.Unavailable, http.StatusServiceUnavailable, true, transient, "Atlas could not be reached"},
	reasonAtlasTLS:             {codes.Unavailable, http.StatusServiceUnavailable, true, onOperator, "Atlas's certificate could not be verified"},
	reasonAtlasTimeout:         {codes.Unavailable, http.StatusServiceUnavailable, true, transient, "Atlas did not answer in time"},
	reasonAtlasUnavailable:     {codes.Unavailable, http.StatusServiceUnavailable, true, transient, "Atlas failed to answer"},
	reasonAtlasRedirect:        {codes.Unknown, http.StatusInternalServerError, false, onOperator, "Atlas answered with a redirect, which is not followed"},
	reasonAtlasInvalidResponse: {codes.Internal, http.StatusInternalServerError, false, onOperator, "Atlas's answer could not be understood"},
	reasonDeleteUnknown:        {codes.Unknown, http.StatusInternalServerError, false, transient, "the delete was sent, but Atlas did not confirm it: the token may or may not be gone"},
	reasonDeadlineExceeded:     {codes.DeadlineExceeded, http.StatusGatewayTimeout, false, onCaller, "the deadline passed before Atlas answered"},
	reasonCancelled:            {codes.Canceled, 499, false, onCaller, "the caller cancelled the call"},
	reasonOverloaded:           {codes.ResourceExhausted, http.StatusTooManyRequests, true, transient, "too many calls are in progress: wait before the next one"},
	reasonRequestMalformed:     {codes.InvalidArgument, http.StatusBadRequest, false, onCaller, "the request cannot be read: send no body, or `{}` as JSON; a Grpc-Timeout has up to 8 digits and a unit, such as 2S"},
	reasonRequestTooLarge:      {codes.ResourceExhausted, http.StatusRequestEntityTooLarge, false, onCaller, "the request is larger than 64 KiB"},
	reasonHeadersTooLarge:      {codes.ResourceExhausted, http.StatusRequestHeaderFieldsTooLarge, false, onCaller, "the headers are larger than 16 KiB"},
	reasonUnsupportedMedia:     {codes.InvalidArgument, http.StatusUnsupportedMediaType, false, onCaller, "the body must be uncompressed `application/json`"},
	reasonRouteNotFound:        {codes.Unimplemented, http.StatusNotFound, false, onCaller, "there is no such route"},
	reasonMethodNotAllowed:     {codes.Unimplemented, http.StatusMethodNotAllowed, false, onCaller, "the route does not support this method: `Allow` lists those it does"},
	reasonInternal:             {codes.Internal, http.StatusInternalServerError, false, onOperator, "internal error: it is logged under this call's request id"},
	reasonCallerRejected:       {codes.Unauthenticated, http.StatusUnauthorized, false, onCaller, "the caller's token is not valid here: get a fresh one for this service's audience"},
	reasonCallerUnknown:        {codes.Unauthenticated, http.StatusUnauthorized, false, onCaller, "the caller is unknown: show a client certificate or a token that this service trusts"},
	reasonCallerNotPermitted:   {codes.PermissionDenied, http.StatusForbidden, false, onCaller, "this service's policy does not permit the caller to do this"},
	reasonCallerCheck:          {codes.Unavailable, http.StatusServiceUnavailable, true, transient, "the caller's token cannot be checked at present"},
}

// callError is how a call fails: the reason goes to the caller, the cause to the log and nowhere else.
type callError struct {
	reason         reason
	retryAfter     time.Duration
	outcomeUnknown bool // a delete that may have taken effect
	cause          error
}

func (e *callError) Error() string { return e.reasonName() }
func (e *callError) Unwrap() error { return e.cause }

// reasonName is the reason as it travels in ErrorInfo.
func (e *callError) reasonName() string {
	return strings.TrimPrefix(e.reason.String(), "ERROR_REASON_")
}

// GRPCStatus is the error as the caller gets it. grpc-go and the gateway both look for this method.
func (e *callError) GRPCStatus() *status.Status {
	a := answers[e.reason]
	info := &errdetails.ErrorInfo{Reason: e.reasonName(), Domain: errorDomain}
	if e.outcomeUnknown {
		info.Metadata = map[string]string{"outcome": "unknown"}
	}
	details := []protoadapt.MessageV1{info}
	if d := e.retryDelay(); d > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(d)})
	}
	st := status.New(a.code, a.message)
	if detailed, err := st.WithDetails(details...); err == nil {
		return detailed
	}
	return st // cannot happen: the details are well-formed and the code is not OK
}

// retryDelay is how long the caller should wait, zero if waiting does not help. A delete that may have happened is not to
// be repeated, so it never comes with an invitation to do that.
func (e *callError) retryDelay() time.Duration {
	switch {
	case !answers[e.reason].retry || e.outcomeUnknown:
		return 0
	case e.retryAfter > 0:
		return e.retryAfter
	}
	return defaultRetryDelay
}

func (e *callError) httpStatus() int { return answers[e.reason].http }

func (e *callError) level() slog.Level { return answers[e.reason].level }

// authReasons are the reasons for what package auth refuses.
var authReasons = []struct {
	err    error
	reason reason
}{
	{auth.ErrMissing, reasonCredentialMissing},
	{auth.ErrMalformed, reasonCredentialMalformed},
	{auth.ErrAmbiguous, reasonCredentialAmbiguous},
	{auth.ErrCallerRejected, reasonCallerRejected},
	{auth.ErrUnknownCaller, reasonCallerUnknown},
	{auth.ErrNotPermitted, reasonCallerNotPermitted},
	{auth.ErrCallerCheckUnavailable, reasonCallerCheck},
}

// toCallError is the one place where an error becomes a reason. What it does not know is an internal error.
func toCallError(err error) *callError {
	var (
		call      *callError
		atlasErr  *atlas.Error
		refused   *atlas.CredentialError
		unsettled *tokencache.UnsettledError
	)
	switch {
	case errors.As(err, &call):
		return call
	case errors.As(err, &unsettled): // before its own cause
		e := &callError{reason: reasonDeleteUnknown, outcomeUnknown: true, cause: err}
		if errors.Is(err, context.DeadlineExceeded) {
			e.reason = reasonDeadlineExceeded
		} else if errors.Is(err, context.Canceled) {
			e.reason = reasonCancelled
		}
		return e
	case errors.As(err, &refused): // before atlasErr, which is its cause
		return &callError{reason: reasonServiceCredential, retryAfter: refused.RetryAfter, cause: err}
	case errors.As(err, &atlasErr):
		return fromAtlas(atlasErr)
	}
	for _, known := range authReasons {
		if errors.Is(err, known.err) {
			return &callError{reason: known.reason, cause: err}
		}
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return &callError{reason: reasonDeadlineExceeded, cause: err}
	case errors.Is(err, context.Canceled):
		return &callError{reason: reasonCancelled, cause: err}
	}
	return &callError{reason: reasonInternal, cause: err}
}

// fromAtlas gives the reason for a failed call to Atlas. A delete that may have reached Atlas is never answered as if it
// had not: repeating it could kill a token that somebody made in between.
func fromAtlas(err *atlas.Error) *callError {
	e := &callError{cause: err, retryAfter: err.RetryAfter}
	switch err.Kind {
	case atlas.KindCanceled:
		e.reason = reasonCancelled
		if errors.Is(err, context.DeadlineExceeded) {
			e.reason = reasonDeadlineExceeded
		}
	case atlas.KindTimeout:
		e.reason = reasonAtlasTimeout
	case atlas.KindUnreachable:
		e.reason = reasonAtlasUnreachable
	case atlas.KindTLS:
		e.reason = reasonAtlasTLS
	case atlas.KindRedirect:
		e.reason = reasonAtlasRedirect
	case atlas.KindInvalidCredential:
		e.reason = reasonCredentialMalformed
	case atlas.KindStatus:
		e.reason = statusReason(err.StatusCode)
	default:
		e.reason = reasonAtlasInvalidResponse
	}
	if err.Op == atlas.OpDelete && err.Sent {
		switch e.reason {
		case reasonAtlasUnreachable, reasonAtlasTLS, reasonAtlasUnavailable:
			e.reason, e.outcomeUnknown = reasonDeleteUnknown, true
		case reasonCancelled, reasonDeadlineExceeded, reasonAtlasTimeout, reasonAtlasInvalidResponse:
			e.outcomeUnknown = true
		}
	}
	return e
}

func statusReason(code int) reason {
	switch code {
	case http.StatusUnauthorized:
		return reasonCredentialRejected
	case http.StatusForbidden:
		return reasonAtlasForbidden
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		return reasonAtlasRoute
	case http.StatusConflict:
		return reasonAtlasConflict
	case http.StatusTooManyRequests:
		return reasonAtlasRateLimited
	}
	if code >= 500 {
		return reasonAtlasUnavailable
	}
	return reasonAtlasInvalidResponse
}
