package atlas

import (
	"cmp"
	"compress/flate"
	"compress/gzip"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Operation names what was asked of Atlas.
type Operation string

// The operations.
const (
	OpCreate  Operation = "create"  // POST /ephemeral-token
	OpDelete  Operation = "delete"  // DELETE /ephemeral-token
	OpLogIn   Operation = "login"   // POST /login/
	OpRefresh Operation = "refresh" // POST /api-token-refresh/
	OpProbe   Operation = "probe"   // GET /ephemeral-token, without a credential
)

// Kind is why an operation failed, in a word or two.
type Kind string

// The kinds.
const (
	// KindUnreachable: no complete HTTP answer came, because of the network or of the protocol,
	// such as a name that is not found, a connection refused or reset, headers too large, a body
	// cut short.
	KindUnreachable Kind = "unreachable"
	// KindTLS: the other side's certificate or TLS is not acceptable. Trying again does not help.
	KindTLS Kind = "TLS"
	// KindTimeout: no complete answer came within [Config.Timeout].
	KindTimeout Kind = "timeout"
	// KindCanceled: the caller's context ended. errors.Is finds context.Canceled or
	// context.DeadlineExceeded; it does so in no error of another kind.
	KindCanceled Kind = "canceled"
	// KindStatus: Atlas answered with an error status, 400 or above.
	KindStatus Kind = "error status"
	// KindRedirect: Atlas answered 3xx. It was not followed, so the credential went nowhere else.
	KindRedirect Kind = "redirect"
	// KindInvalidResponse: Atlas answered with success, but not with what its contract says.
	KindInvalidResponse Kind = "invalid response"
	// KindInvalidCredential: the JWT has characters that no JWT has. It was not sent.
	KindInvalidCredential Kind = "invalid credential"
	// KindUnavailable: nothing was sent, because too many of the calls just before have failed. No
	// Client returns it, but package resilient does.
	KindUnavailable Kind = "unavailable"
	// KindOverloaded: nothing was sent, because the concurrency limit is reached. No Client returns
	// it, but package resilient does.
	KindOverloaded Kind = "overloaded"
)

// Error is why an operation failed. It holds no JWT and no token, and nothing from the body or the
// header values of an answer, so it is safe to log.
type Error struct {
	// Op is the operation that failed.
	Op Operation

	// Kind is why.
	Kind Kind

	// StatusCode is the HTTP status of Atlas's answer, 0 if none came. It is there even if the rest
	// of the answer was not valid.
	StatusCode int

	// RetryAfter is how long to wait, 0 if unknown. With KindStatus it is what Atlas asked for,
	// within 1 second to 5 minutes; with KindUnavailable, until Atlas is asked again.
	RetryAfter time.Duration

	// Sent is whether the request may have reached Atlas. It is false only if it provably did not:
	// then nothing happened there, and any operation can be repeated.
	Sent bool

	// Err is the cause. It is never nil.
	Err error
}

// Error returns the operation, the kind, the status if one came, and the cause, in one line.
func (e *Error) Error() string {
	status := ""
	if e.StatusCode != 0 {
		status = fmt.Sprintf(" (HTTP %d)", e.StatusCode)
	}
	return fmt.Sprintf("atlas: %s: %s%s: %v", e.Op, e.Kind, status, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ErrProtocol is the cause, of KindUnreachable, if an answer breaks the rules of HTTP/2 or has
// headers that are too large: the next one would too.
var ErrProtocol = errors.New("the answer breaks HTTP's rules, or its headers are too large")

// The causes of errors. Their texts are fixed: what was received is never quoted, because it may be
// a secret.
var (
	errJWT      = errors.New("the JWT is empty or has characters that no JWT has; it was not sent")
	errRequest  = errors.New("the request cannot be made; it was not sent")
	errCutShort = fmt.Errorf("the connection was closed before the answer was complete: %w", io.ErrUnexpectedEOF)
	errRepeat   = errors.New("the connection was lost or the stream reset; not repeated, because it may have been processed")
	errTimeout  = errors.New("no complete answer")

	errRedirect  = errors.New("the answer is a redirect, and none is followed: check the base URL")
	errStatus    = errors.New("the status is not one that the operation has")
	errMediaType = errors.New("the answer's media type is not application/json")
	errTooLarge  = errors.New("the answer is larger than " + strconv.Itoa(maxBodyBytes) + " bytes")
	errGzip      = errors.New("the answer's gzip encoding is corrupt")
)

// statusError is an HTTP error status as a cause, in Go's words: Atlas's reason phrase is its own.
func statusError(code int) error {
	return errors.New(cmp.Or(http.StatusText(code), "not a status that HTTP defines"))
}

// proxyError is the status with which a proxy refused to connect to Atlas.
type proxyError int

func (e proxyError) Error() string {
	return fmt.Sprintf("the proxy answered CONNECT with status %d", int(e))
}

// classify returns the kind of an error of net/http, and a cause that is safe to log. It
// allows texts rather than forbidding them: net/http quotes malformed status lines and
// headers, reason phrases and proxy settings. Nor does a cause match context.DeadlineExceeded, as
// the timeout of a dial would.
func classify(err error) (Kind, error) {
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return KindTLS, e
	}
	if e, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return KindTLS, errors.New(e.Error()) // without its first bytes of the answer
	}
	if e, ok := errors.AsType[proxyError](err); ok {
		return KindUnreachable, e
	}
	for {
		op, ok := errors.AsType[*net.OpError](err)
		if !ok {
			break
		}
		switch op.Op {
		case "remote error", "local error": // a TLS alert; tls.AlertError is for QUIC only
			return KindTLS, op
		case "dial", "read", "write":
			return KindUnreachable, &networkError{op}
		}
		err = op.Err // "proxyconnect" wraps all that can happen at a proxy
	}
	text := err.Error()
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return KindUnreachable, errCutShort
	case errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum), errors.As(err, new(flate.CorruptInputError)):
		return KindInvalidResponse, errGzip
	case strings.HasPrefix(text, "tls: "): // most of what crypto/tls finds wrong in a handshake has no type
		return KindTLS, errors.New(text)
	case slices.Contains(constantTexts, text):
		return KindUnreachable, errors.New(text)
	case slices.ContainsFunc(protocolTexts, func(start string) bool { return strings.HasPrefix(text, start) }):
		return KindUnreachable, ErrProtocol
	}
	if reset, ok := errors.AsType[streamError](err); ok {
		if reset.Cause != nil && reset.Cause.Error() != fromPeer { // it is this side that has reset the stream
			return KindUnreachable, ErrProtocol
		}
		return KindUnreachable, fmt.Errorf("the HTTP/2 stream was reset with code %d", reset.Code)
	}
	return KindUnreachable, fmt.Errorf("the answer was not valid HTTP, or the connection failed (%T)", err)
}

// Errors of net/http that have no type. If a later Go changes the words, the error is described in
// general terms.
var (
	constantTexts = []string{
		"http: server closed idle connection",
		"http2: client connection lost", // no answer to a ping
		"net/http: TLS handshake timeout",
	}
	protocolTexts = []string{ // how the texts start
		"http2: response header list larger than advertised limit",
		"header list too large",
		"net/http: server response headers exceeded ",
		"net/http: too many 1xx informational responses",
		"connection error: ", // it is this side that has closed the HTTP/2 connection
	}
)

const fromPeer = "received from peer"

// networkError has the text of a *net.OpError, and matches no more of what is in it than its errno.
type networkError struct{ op *net.OpError }

func (e *networkError) Error() string { return e.op.Error() }

func (e *networkError) Unwrap() error {
	if errno, ok := errors.AsType[syscall.Errno](e.op); ok {
		return errno
	}
	return nil
}

// streamError is the error of an HTTP/2 stream. Its type in net/http is not exported, but converts
// itself to one with the same fields (golang.org/issue/53896).
type streamError struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

func (e streamError) Error() string { return "stream error" }

// Class is what the end of an operation means for its caller.
type Class int

// The classes.
const (
	// ClassOK: there is no error.
	ClassOK Class = iota
	// ClassOutage: 5xx, a timeout or a connection that failed, whatever the request was.
	ClassOutage
	// ClassHeldBack: nothing was sent, because Atlas is down or has too many calls (package
	// resilient).
	ClassHeldBack
	// ClassThrottled: Atlas answered 429.
	ClassThrottled
	// ClassUnauthorized: Atlas refuses the credential: 401, and for a login or refresh also 400 and
	// 403.
	ClassUnauthorized
	// ClassRejected: Atlas answered with a 4xx other than these and 403.
	ClassRejected
	// ClassCanceled: the caller's context ended.
	ClassCanceled
	// ClassOther: the credential is known and does not allow the operation (403) or cannot be sent;
	// something other than Atlas's API answered, and an operator has to look (a certificate that is
	// not valid, a redirect, an answer that breaks the contract); or the error is not one of this
	// package.
	ClassOther
)

// Classify returns the class of the error that an operation ended with, which may be wrapped.
func Classify(err error) Class {
	if err == nil {
		return ClassOK
	}
	if _, ok := errors.AsType[*CredentialError](err); ok {
		return ClassUnauthorized
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return ClassOther
	}
	status, login := 0, e.Op == OpLogIn || e.Op == OpRefresh
	if e.Kind == KindStatus {
		status = e.StatusCode
	}
	switch {
	case e.Kind == KindUnreachable, e.Kind == KindTimeout, status >= 500:
		return ClassOutage
	case e.Kind == KindUnavailable, e.Kind == KindOverloaded:
		return ClassHeldBack
	case e.Kind == KindCanceled:
		return ClassCanceled
	case status == http.StatusTooManyRequests:
		return ClassThrottled
	case status == http.StatusUnauthorized, login && (status == http.StatusBadRequest || status == http.StatusForbidden):
		return ClassUnauthorized
	case status == 0, status == http.StatusForbidden:
		return ClassOther
	}
	return ClassRejected
}

// OutcomeUnknown reports whether the operation is a delete that was sent and may have taken effect:
// no answer came, or one that does not say.
func (e *Error) OutcomeUnknown() bool {
	if e.Op != OpDelete || !e.Sent || e.Kind == KindRedirect {
		return false
	}
	if e.Kind != KindStatus || e.StatusCode >= 500 {
		return true
	}
	switch e.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooEarly, 499: // how proxies log a client that has left
		return true
	}
	return false
}
