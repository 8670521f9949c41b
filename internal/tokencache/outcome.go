package tokencache

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redis"
)

// isRefusal reports whether Atlas no longer lets the credential in.
func isRefusal(err error) bool {
	if _, ok := errors.AsType[*atlas.CredentialError](err); ok {
		return true
	}
	e, ok := errors.AsType[*atlas.Error](err)
	return ok && e.Kind == atlas.KindStatus && (e.StatusCode == http.StatusUnauthorized || e.StatusCode == http.StatusForbidden)
}

// isFailure reports whether it is Atlas that failed, rather than the caller who gave up or who asked for something wrong.
// Being throttled is such a failure: that is when a token kept for bad times helps most.
func isFailure(err error) bool {
	e, ok := errors.AsType[*atlas.Error](err)
	if !ok {
		return false
	}
	switch e.Kind {
	case atlas.KindUnreachable, atlas.KindTLS, atlas.KindTimeout, atlas.KindRedirect, atlas.KindInvalidResponse,
		atlas.KindUnavailable, atlas.KindOverloaded:
		return true
	case atlas.KindCanceled: // the shared call's own time was up
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

// outcomeOf returns the outcome of a delete that ended with err. It is unknown unless the error says
// that Atlas was not asked, or has refused.
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

// UnsettledError says that the caller's deadline passed before the delete was complete: before Atlas answered, or before
// cached copies in a Redis that cannot be reached had expired.
type UnsettledError struct{ Err error }

func (e *UnsettledError) Error() string {
	return fmt.Sprintf("the delete had not ended: %v", e.Err)
}

func (e *UnsettledError) Unwrap() error { return e.Err }
