package tokencache

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redis"
)

// upstream is Atlas, the last layer.
type upstream struct{ atlas Atlas }

func (u upstream) create(ctx context.Context, r request) (Result, error) {
	token, err := atlas.WithReLogin(ctx, r.cred, u.atlas.CreateEphemeralToken)
	if err != nil {
		return Result{}, err
	}
	return Result{Token: token, Org: r.org()}, nil // Atlas has just accepted the JWT
}

func (u upstream) delete(ctx context.Context, r request) (string, error) {
	_, err := atlas.WithReLogin(ctx, r.cred, func(ctx context.Context, jwt atlas.JWT) (struct{}, error) {
		if r.caller == nil {
			return struct{}{}, u.atlas.DeleteEphemeralToken(ctx, jwt)
		}
		if err := r.caller.Err(); err != nil {
			return struct{}{}, &atlas.Error{Op: atlas.OpDelete, Kind: atlas.KindCanceled, Err: err}
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		// Until there is a connection to write the request to, the caller can cancel it.
		stop := context.AfterFunc(r.caller, cancel)
		defer stop()
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { stop() }})
		return struct{}{}, u.atlas.DeleteEphemeralToken(ctx, jwt)
	})
	if err != nil {
		return "", err
	}
	return r.org(), nil
}

func (upstream) cached(context.Context, request) (Result, bool) { return Result{}, false }

// isRefusal reports whether Atlas refused the credential.
func isRefusal(err error) bool {
	if _, ok := errors.AsType[*atlas.CredentialError](err); ok {
		return true
	}
	e, ok := errors.AsType[*atlas.Error](err)
	return ok && e.Kind == atlas.KindStatus && (e.StatusCode == http.StatusUnauthorized || e.StatusCode == http.StatusForbidden)
}

// isFailure reports whether Atlas failed, rather than the caller. Throttling counts: a stale token
// helps then.
func isFailure(err error) bool {
	e, ok := errors.AsType[*atlas.Error](err)
	if !ok {
		return false
	}
	switch e.Kind {
	case atlas.KindUnreachable, atlas.KindTLS, atlas.KindTimeout, atlas.KindRedirect, atlas.KindInvalidResponse,
		atlas.KindUnavailable, atlas.KindOverloaded:
		return true
	case atlas.KindCanceled: // by the deadline of the shared call
		return errors.Is(err, context.DeadlineExceeded)
	case atlas.KindStatus:
		return e.StatusCode >= 500 || e.StatusCode == http.StatusTooManyRequests
	}
	return false
}

// outcome is the outcome of a delete at Atlas.
type outcome = redis.Outcome

const (
	outcomeDone    = redis.Done
	outcomeNotDone = redis.NotDone
	outcomeUnknown = redis.Unknown
)

// outcomeOf returns the outcome of a delete that ended with err. It is unknown unless the error
// says that Atlas was not asked, or has refused.
func outcomeOf(err error) outcome {
	if err == nil {
		return outcomeDone
	}
	if _, ok := errors.AsType[*atlas.CredentialError](err); ok || errors.Is(err, atlas.ErrOrgChanged) {
		return outcomeNotDone
	}
	e, ok := errors.AsType[*atlas.Error](err)
	if ok && (e.Op != atlas.OpDelete || !e.Sent || e.Kind == atlas.KindStatus && refuses(e.StatusCode)) {
		return outcomeNotDone
	}
	return outcomeUnknown
}

// refuses reports whether a status says that the request was not carried out. A proxy answers 408,
// 425 or 499 about itself, and may have passed the request on.
func refuses(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooEarly, 499:
		return false
	}
	return status < 500
}

// UnsettledError says that the caller's deadline passed before the delete was complete: before
// Atlas answered, or before cached copies in a Redis that cannot be reached had expired.
type UnsettledError struct{ Err error }

func (e *UnsettledError) Error() string {
	return fmt.Sprintf("the delete had not ended: %v", e.Err)
}

func (e *UnsettledError) Unwrap() error { return e.Err }
