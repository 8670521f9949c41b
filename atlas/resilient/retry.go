package resilient

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

const (
	// A call is retried at most so often.
	maxRetries = 2
	// The wait before the first retry is anything up to this, before the second up to twice as much: full jitter keeps those
	// apart that failed together.
	retryWait = 50 * time.Millisecond
	// A retry does not begin with less time than this left: it would end in vain, and at Atlas's expense.
	minTimeLeft = 50 * time.Millisecond
)

// call makes as many attempts as it takes. The error is that of the last attempt that the breaker and the limiter did
// not refuse, or of the first if they refused all.
//
// The loop is our own, because what decides on a retry is what remains of this call's time and of the budget at that
// moment, and failsafe-go's policy is asked about the answer alone.
func call[T any](ctx context.Context, c *Client, op atlas.Operation, ask func() (T, error)) (answer T, err error) {
	c.budget.deposit()
	for retry := 0; ; retry++ {
		failed := c.attempt(ctx, op, func() (err error) {
			answer, err = ask()
			return err
		})
		if failed == nil {
			return answer, nil
		}
		if retry == 0 || !isRefusal(failed) {
			err = failed
		}
		if retry == maxRetries || !isRetryable(failed) || !c.pause(ctx, retryWait<<retry, asError(failed).RetryAfter) {
			return answer, err
		}
	}
}

// pause waits for anything up to most before a retry. It reports false, without a wait, if there should be none.
func (c *Client) pause(ctx context.Context, most, asked time.Duration) bool {
	wait := rand.N(most) //nolint:gosec // not a secret
	if asked > wait {    // Atlas wants to be left alone for longer
		return false
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < wait+minTimeLeft {
		return false
	}
	if ctx.Err() != nil || !c.budget.withdraw() {
		return false
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// isRetryable reports whether the same again may succeed and does no harm.
func isRetryable(err error) bool {
	e := asError(err)
	if e == nil {
		return false
	}
	unreachable := e.Kind == atlas.KindUnreachable && !errors.Is(e, atlas.ErrProtocol)
	switch e.Op {
	case atlas.OpCreate:
		// Not after a timeout: so long a wait is not to be had twice.
		return unreachable || e.Kind == atlas.KindStatus && isTransient(e.StatusCode)
	case atlas.OpDelete:
		return unreachable && !e.Sent
	case atlas.OpLogIn, atlas.OpRefresh:
		return unreachable
	}
	return false
}

func isTransient(status int) bool {
	switch status {
	case http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// isRefusal reports whether the breaker or the limiter refused the attempt, so Atlas had no part in it.
func isRefusal(err error) bool {
	e := asError(err)
	return e != nil && (e.Kind == atlas.KindUnavailable || e.Kind == atlas.KindOverloaded)
}
