package atlas

import (
	"context"
	"errors"
	"net/http"
)

// Class is what the end of an operation means for its caller.
type Class int

// The classes.
const (
	// ClassOK: there is no error.
	ClassOK Class = iota
	// ClassOutage: the trouble is Atlas's or the network's, and says nothing about the request:
	// 5xx, a timeout, a connection that failed.
	ClassOutage
	// ClassHeldBack: Atlas was not asked, because it is down or has too many calls (package
	// resilient).
	ClassHeldBack
	// ClassThrottled: Atlas answered 429.
	ClassThrottled
	// ClassUnauthorized: Atlas refuses the credential: 401, and for a login or refresh also 400 and
	// 403.
	ClassUnauthorized
	// ClassForbidden: Atlas answered 403: it knows the credential, and does not let it do this.
	ClassForbidden
	// ClassRejected: Atlas answered with another 4xx.
	ClassRejected
	// ClassBroken: something other than Atlas's API answered, and an operator has to look: a
	// certificate that is not valid, a redirect, an answer that breaks the contract.
	ClassBroken
	// ClassCanceled: the caller's context ended.
	ClassCanceled
	// ClassInvalid: the credential cannot be sent.
	ClassInvalid
	// ClassUnknown: the error is not one of this package.
	ClassUnknown
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
		return ClassUnknown
	}
	switch e.Kind {
	case KindUnreachable, KindTimeout:
		return ClassOutage
	case KindUnavailable, KindOverloaded:
		return ClassHeldBack
	case KindTLS, KindRedirect, KindInvalidResponse:
		return ClassBroken
	case KindCanceled:
		return ClassCanceled
	case KindInvalidCredential:
		return ClassInvalid
	case KindStatus:
		return classOfStatus(e)
	}
	return ClassUnknown
}

func classOfStatus(e *Error) Class {
	login := e.Op == OpLogIn || e.Op == OpRefresh
	switch code := e.StatusCode; {
	case code >= 500:
		return ClassOutage
	case code == http.StatusTooManyRequests:
		return ClassThrottled
	case code == http.StatusUnauthorized, login && (code == http.StatusBadRequest || code == http.StatusForbidden):
		return ClassUnauthorized
	case code == http.StatusForbidden:
		return ClassForbidden
	}
	return ClassRejected
}

// statusClientClosed is how proxies log a request whose client left; some answer with it.
const statusClientClosed = 499

// OutcomeUnknown reports whether the operation is a delete that was sent and may have taken effect:
// no answer came, or one that does not say.
func (e *Error) OutcomeUnknown() bool {
	if e.Op != OpDelete || !e.Sent {
		return false
	}
	switch e.Kind {
	case KindStatus:
	case KindRedirect:
		return false
	default:
		return true
	}
	switch e.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooEarly, statusClientClosed:
		return true
	}
	return e.StatusCode >= 500
}

type profileKey struct{}

// WithProfile returns a context for operations of one of the service's own identities.
// [WithReLogin] and a [TokenSource] use it, so that a wrapper of a Client can tell identities
// apart.
func WithProfile(ctx context.Context, profile string) context.Context {
	return context.WithValue(ctx, profileKey{}, profile)
}

// ProfileOf returns the profile of [WithProfile]; "" if there is none.
func ProfileOf(ctx context.Context) string {
	profile, _ := ctx.Value(profileKey{}).(string)
	return profile
}
