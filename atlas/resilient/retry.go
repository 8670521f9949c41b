package resilient

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

const (
	// maxRetries is the most retries of a call.
	maxRetries = 2
	// The wait before the first retry is anything up to retryWait, before the second up to twice as
	// much: full jitter keeps those apart that failed together.
	retryWait = 50 * time.Millisecond
	// minAttemptTime is the least time that an attempt needs: with less it would only load Atlas.
	minAttemptTime = 50 * time.Millisecond
)

// call makes one or more attempts. The error is that of the last attempt that reached
// Atlas, or of the first if none did.
func call[T any](ctx context.Context, c *Client, op atlas.Operation, ask func() (T, error)) (answer T, err error) {
	tenant := atlas.TenantOf(ctx)
	c.budget.deposit(tenant)
	for retry := 0; ; retry++ {
		failed := c.attempt(ctx, op, tenant, func() (err error) {
			answer, err = ask()
			return err
		})
		if failed == nil {
			return answer, nil
		}
		if retry == 0 || atlas.Classify(failed) != atlas.ClassHeldBack {
			err = failed
		}
		if retry == maxRetries || !c.waitToRetry(ctx, tenant, retryWait<<retry, failed) {
			return answer, err
		}
	}
}

// waitToRetry waits for anything up to most before a retry. It reports false, without a wait, if
// there should be none.
func (c *Client) waitToRetry(ctx context.Context, tenant atlas.Tenant, most time.Duration, err error) bool {
	failed, ok := errors.AsType[*atlas.Error](err)
	if !ok || !isRetryable(failed) {
		return false
	}
	wait := rand.N(most) //nolint:gosec // not a secret
	if failed.RetryAfter > wait {
		return false // Atlas asks for a longer wait
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < wait+minAttemptTime {
		return false
	}
	if ctx.Err() != nil || !c.budget.withdraw(tenant) {
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

// isRetryable reports whether another attempt may succeed and does no harm.
func isRetryable(e *atlas.Error) bool {
	unreachable := e.Kind == atlas.KindUnreachable && !errors.Is(e, atlas.ErrProtocol)
	switch e.Op {
	case atlas.OpCreate:
		// Twice gives the same token as once. Not after a timeout: there is no time for another
		// one.
		return unreachable || e.Kind == atlas.KindStatus && isTransient(e.StatusCode)
	case atlas.OpDelete:
		// A late retry could delete a token that was created in between.
		return unreachable && !e.Sent
	case atlas.OpLogIn, atlas.OpRefresh:
		// Not after an answer: a series of refused logins could lock the account.
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

const (
	// retryShare is what a call adds to the budget; a retry takes 1. So retries add at most this
	// fraction to Atlas's load.
	retryShare = 0.1
	// budgetStart is what the process has at the start, and what remains with little traffic.
	// budgetMost is what it can save in busy times, for when one lost connection fails many calls
	// at once. A tenant has half of both.
	budgetStart = 10
	budgetMost  = 100
	// maxBudgets is how many tenants' budgets are kept.
	maxBudgets = 10_000
)

// budget bounds the retries: those of a tenant by its own calls, and all together by all calls. So
// a tenant whose calls all fail leaves the others their retries.
type budget struct {
	mu      sync.Mutex
	all     float64                  // guarded by mu
	tenants map[atlas.Tenant]float64 // guarded by mu
	granted uint64                   // guarded by mu
	denied  uint64                   // guarded by mu
}

func newBudget() *budget { return &budget{all: budgetStart, tenants: map[atlas.Tenant]float64{}} }

// deposit notes a call of a tenant.
func (b *budget) deposit(tenant atlas.Tenant) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all = min(b.all+retryShare, budgetMost)
	own, known := b.tenants[tenant]
	if !known {
		own = budgetStart / 2
		if len(b.tenants) >= maxBudgets {
			clear(b.tenants)
		}
	}
	b.tenants[tenant] = min(own+retryShare, budgetMost/2)
}

// withdraw reports whether a tenant may make a retry.
func (b *budget) withdraw(tenant atlas.Tenant) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.all < 1 || b.tenants[tenant] < 1 {
		b.denied++
		return false
	}
	b.all--
	b.tenants[tenant]--
	b.granted++
	return true
}

func (b *budget) counts() (granted, denied uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.granted, b.denied
}
