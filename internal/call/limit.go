package call

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
)

// Limits of one call, on both transports. A request has no fields and a credential is some hundred bytes, so they are tight.
const (
	MaxHeaderBytes  = 16 << 10 // metadata or headers
	MaxMessageBytes = 64 << 10 // message or body
)

// minTimeLeft is the least time in which Atlas could answer. A call with less is not worth Atlas's effort.
const minTimeLeft = 5 * time.Millisecond

// maxMargin is the most that is kept back of a caller's time, for our answer to reach him by his deadline.
const maxMargin = 25 * time.Millisecond

// inProgressLimit is the limit of all callers together that a call can be refused for.
const inProgressLimit = "in_progress"

// Limits are all those that a call can be refused for.
var Limits = [...]string{inProgressLimit, callerInProgressLimit, callerRateLimit}

// limit bounds what is in progress: at most maxCalls calls at a time, none for longer than the ceiling, nor until its caller
// has stopped listening. Calls beyond Atlas's connection pool wait there; those beyond maxCalls are refused at once, so the
// queue is bounded. What is in progress when cut is done ends.
func limit(maxCalls int64, ceiling time.Duration, cut context.Context, refused func(limit string)) grpc.UnaryServerInterceptor { //nolint:revive // it is of no call
	inProgress := semaphore.NewWeighted(maxCalls)
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		now, left := time.Now(), ceiling
		if deadline, ok := ctx.Deadline(); ok {
			left = min(left, trim(deadline.Sub(now)))
		}
		if left < minTimeLeft {
			return nil, &apierror.Error{Reason: apierror.DeadlineExceeded, Cause: context.DeadlineExceeded}
		}
		if !inProgress.TryAcquire(1) {
			refused(inProgressLimit)
			return nil, &apierror.Error{Reason: apierror.Overloaded}
		}
		defer inProgress.Release(1)
		limited := withDeadline(ctx, now.Add(left), cut)
		defer limited.stop()
		resp, err := handler(limited, req)
		if err != nil && cut.Err() != nil && ctx.Err() == nil {
			err = explainCut(err)
		}
		return resp, err
	}
}

// errCutOff is the cause of the answer to a call that cut has ended.
var errCutOff = errors.New("the service stops, and does not wait for Atlas any longer")

// explainCut answers a call that was cancelled, but not by its caller. He may try elsewhere, unless it is a delete that may have been done.
func explainCut(err error) error {
	e := apierror.From(err)
	if e.Reason != apierror.Cancelled {
		return err
	}
	reason := apierror.AtlasTimeout
	if e.OutcomeUnknown {
		reason = apierror.DeleteOutcomeUnknown
	}
	return &apierror.Error{Reason: reason, OutcomeUnknown: e.OutcomeUnknown, Cause: fmt.Errorf("%w: %w", errCutOff, err)}
}

// trim is what remains of a caller's time once some is kept back for the way of the answer.
func trim(left time.Duration) time.Duration { return left - min(maxMargin, left/10) }
