package tokencache

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
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
	case atlas.KindUnreachable, atlas.KindTLS, atlas.KindTimeout, atlas.KindRedirect, atlas.KindInvalidResponse:
		return true
	case atlas.KindCanceled: // the shared call's own time was up
		return errors.Is(err, context.DeadlineExceeded)
	case atlas.KindStatus:
		return e.StatusCode >= 500 || e.StatusCode == http.StatusTooManyRequests
	}
	return false
}

// outcomeUnknown reports whether a delete that failed may still take effect.
func outcomeUnknown(err error) bool {
	e, ok := errors.AsType[*atlas.Error](err)
	if !ok || e.Op != atlas.OpDelete || !e.Sent {
		return false
	}
	return e.Kind != atlas.KindStatus || e.StatusCode >= 500
}

// UnsettledError says that Atlas has deleted the token, but copies of it are remembered where nothing can reach them now,
// and the caller's time was up before they expired.
type UnsettledError struct{ Err error }

func (e *UnsettledError) Error() string {
	return fmt.Sprintf("deleted at Atlas, but remembered copies may still be alive: %v", e.Err)
}

func (e *UnsettledError) Unwrap() error { return e.Err }
