package chain

import (
	"context"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"

	"github.com/ForstaLabs/ephemeral-token-service/server/apierror"
)

// Limits of one call, on both transports. A request has no fields and a credential is some hundred bytes, so they are tight.
const (
	MaxHeaderBytes  = 16 << 10 // metadata or headers
	MaxMessageBytes = 64 << 10 // message or body
)

// minTimeLeft is the least time in which Atlas could answer. A call with less is not worth Atlas's effort.
const minTimeLeft = 5 * time.Millisecond

// limit bounds what is in progress: at most maxCalls calls at a time, none for longer than the ceiling. Calls beyond Atlas's
// connection pool wait there; those beyond maxCalls are refused at once, so the queue is bounded.
func limit(maxCalls int64, ceiling time.Duration) grpc.UnaryServerInterceptor {
	inProgress := semaphore.NewWeighted(maxCalls)
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < minTimeLeft {
			return nil, &apierror.Error{Reason: apierror.DeadlineExceeded, Cause: context.DeadlineExceeded}
		}
		ctx, cancel := context.WithTimeout(ctx, ceiling)
		defer cancel()
		if !inProgress.TryAcquire(1) {
			return nil, &apierror.Error{Reason: apierror.Overloaded}
		}
		defer inProgress.Release(1)
		return handler(ctx, req)
	}
}
