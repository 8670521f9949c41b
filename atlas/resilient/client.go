// Package resilient stands between the service and Atlas, and does what one call cannot do by itself: it retries what is safe
// to retry, leaves an Atlas alone that is down, and sends it no more calls at a time than it can do in good time.
//
// A [Client] has the methods of [atlas.Client], so whoever uses the one can use the other. A call is one or more attempts
// (retry.go), each of which needs the permit of the breaker (breaker.go) and a slot of the limiter (limiter.go) before Atlas is
// asked. What these two refuse fails with an [*atlas.Error] as well, of [atlas.KindUnavailable] or [atlas.KindOverloaded], with
// Sent false.
//
// The package logs nothing and treats all credentials alike: that Atlas throttles or refuses one of them is for its callers to
// act on.
package resilient

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// Atlas is what a Client calls. *atlas.Client is one. Errors are *atlas.Error.
type Atlas interface {
	atlas.IdentityProvider
	CreateEphemeralToken(ctx context.Context, jwt atlas.JWT) (atlas.Token, error)
	DeleteEphemeralToken(ctx context.Context, jwt atlas.JWT) error
}

// Config says how a Client treats Atlas. The zero value is what to run with.
type Config struct {
	// MaxCalls is the most creates and deletes that are at Atlas at a time, however well it does. Default 128.
	MaxCalls int
	// OnChange, if set, is told when the breaker opens and when it closes: cause is what the last call at Atlas failed with,
	// and nil when Atlas answers again. It must not block, nor call the Client.
	OnChange func(cause error)
}

const (
	defaultMaxCalls = 128
	// reservedConns are for what MaxCalls does not bound: logins, refreshes and the breaker's probes, which are few.
	reservedConns = 16
)

// Conns is how many connections to Atlas there have to be, so that none of what a Client lets through waits for one: twice
// MaxCalls, for what still hangs when an Atlas that was down is back, and some more.
func (c Config) Conns() int { return 2*cmp.Or(c.MaxCalls, defaultMaxCalls) + reservedConns }

// Client calls Atlas. It is safe for concurrent use; make one for each host, and share it.
type Client struct {
	atlas   Atlas
	budget  *budget
	breaker *breaker
	limiter *limiter
}

// New returns a Client in front of next.
func New(next Atlas, config Config) (*Client, error) {
	if config.MaxCalls < 0 {
		return nil, fmt.Errorf("MaxCalls is %d: give a positive number, or 0 for %d", config.MaxCalls, defaultMaxCalls)
	}
	c := &Client{atlas: next, budget: newBudget(), limiter: newLimiter(cmp.Or(config.MaxCalls, defaultMaxCalls))}
	c.breaker = newBreaker(func(cause error) {
		if cause != nil {
			c.limiter.writeOff()
		}
		if config.OnChange != nil {
			config.OnChange(cause)
		}
	})
	return c, nil
}

// CreateEphemeralToken is that of [atlas.Client]. It is retried whenever that may help: twice gives the same token as once.
func (c *Client) CreateEphemeralToken(ctx context.Context, jwt atlas.JWT) (atlas.Token, error) {
	return call(ctx, c, atlas.OpCreate, func() (atlas.Token, error) { return c.atlas.CreateEphemeralToken(ctx, jwt) })
}

// DeleteEphemeralToken is that of [atlas.Client]. It is retried only if it provably did not reach Atlas: a late retry could
// delete a token that somebody created in between.
func (c *Client) DeleteEphemeralToken(ctx context.Context, jwt atlas.JWT) error {
	_, err := call(ctx, c, atlas.OpDelete, func() (struct{}, error) {
		return struct{}{}, c.atlas.DeleteEphemeralToken(ctx, jwt)
	})
	return err
}

// LogIn is that of [atlas.Client]. It is retried if no answer came: never if there was one, since a series of refused
// logins could lock the account.
func (c *Client) LogIn(ctx context.Context, secret atlas.UserAuthToken) (atlas.JWT, error) {
	return call(ctx, c, atlas.OpLogIn, func() (atlas.JWT, error) { return c.atlas.LogIn(ctx, secret) })
}

// RefreshJWT is that of [atlas.Client], and is retried as a login is.
func (c *Client) RefreshJWT(ctx context.Context, jwt atlas.JWT) (atlas.JWT, error) {
	return call(ctx, c, atlas.OpRefresh, func() (atlas.JWT, error) { return c.atlas.RefreshJWT(ctx, jwt) })
}

// Check is what an operator should know of, nil if all is well.
func (c *Client) Check() error { return c.breaker.check() }

// Stats is what there is to see of a Client.
type Stats struct {
	Open        bool   // Atlas is taken to be down: calls are refused, but for probes
	Retries     uint64 // retries so far
	OutOfBudget uint64 // retries so far that were not made for want of budget
	Limit       int    // how many creates and deletes may be at Atlas at present
	InFlight    int    // how many are
	Waiting     int    // how many wait to be
	Refused     uint64 // how many were refused so far, because too many were there
}

// Stats returns what there is to see at present.
func (c *Client) Stats() Stats {
	s := Stats{Open: c.breaker.check() != nil}
	s.Retries, s.OutOfBudget = c.budget.counts()
	s.Limit, s.InFlight, s.Waiting, s.Refused = c.limiter.counts()
	return s
}

// attempt asks Atlas once, if the breaker and the limiter let it.
func (c *Client) attempt(ctx context.Context, op atlas.Operation, ask func() error) (err error) {
	permit, err := c.breaker.admit(op)
	if err != nil {
		return err
	}
	verdict := verdictNone // also if ask panics
	defer func() { permit.done(verdict, err) }()
	if isLimited(op) && !permit.probe {
		slot, err := c.limiter.acquire(ctx, op)
		if err != nil {
			return err
		}
		defer func() { slot.release(verdict == verdictAnswered) }()
		if err := permit.recheck(op); err != nil { // it may have opened during the wait
			return err
		}
	}
	start := time.Now()
	err = ask()
	verdict = judge(ctx, err, time.Since(start))
	return err
}

// isLimited reports whether an operation counts for the limiter. Logins and refreshes do not: there is one at a time for
// each identity, all of its calls hang on it, and it should not queue behind those of others.
func isLimited(op atlas.Operation) bool { return op == atlas.OpCreate || op == atlas.OpDelete }

// asError is the *atlas.Error that err is, nil if it is none.
func asError(err error) *atlas.Error {
	e, _ := errors.AsType[*atlas.Error](err)
	return e
}
