package call

import (
	"context"
	"errors"
	"fmt"
	"time"

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

// maxMargin is the most that is kept back of a caller's time, for our answer to arrive before its deadline.
const maxMargin = 25 * time.Millisecond

// errShuttingDown is the cause of the end of calls that are in progress when the service stops waiting for them.
var errShuttingDown = &apierror.Error{Reason: apierror.ShuttingDown}

// limit bounds the time of a call: it ends at the ceiling, shortly before its caller stops listening, and when cut is done.
func limit(ceiling time.Duration, cut context.Context) grpc.UnaryServerInterceptor { //nolint:revive // it is of no call
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		left := ceiling
		if deadline, ok := ctx.Deadline(); ok {
			left = min(left, trim(time.Until(deadline)))
		}
		if left < minTimeLeft {
			return nil, &apierror.Error{Reason: apierror.DeadlineExceeded, Cause: context.DeadlineExceeded}
		}
		limited := withDeadline(ctx, time.Now().Add(left), cut)
		defer limited.stop()
		resp, err := handler(limited, req)
		if err != nil {
			err = explainEnd(limited, err)
		}
		return resp, err
	}
}

// explainEnd returns the error of a call whose context ended. If the service ended it, and not the caller, the cause is an
// *apierror.Error, and its reason replaces CANCELLED, which clients do not retry.
func explainEnd(ctx context.Context, err error) error {
	ended, ok := errors.AsType[*apierror.Error](context.Cause(ctx))
	e := apierror.From(err)
	if !ok || e.Reason != apierror.Cancelled {
		return err
	}
	cause := fmt.Errorf("%w: %w", ended, err)
	if e.OutcomeUnknown {
		return &apierror.Error{Reason: apierror.DeleteOutcomeUnknown, OutcomeUnknown: true, Cause: cause}
	}
	return &apierror.Error{Reason: ended.Reason, Cause: cause}
}

// trim is what remains of a caller's time once some is kept back for the way of the answer.
func trim(left time.Duration) time.Duration { return left - min(maxMargin, left/10) }
