// Package resilient stands between the service and Atlas. It retries what is safe to retry, stops
// calling an Atlas that is down, and bounds the calls at Atlas, so that one tenant's trouble does
// not reach another.
//
// A [Client] has the methods of [atlas.Client]. A call is one or more attempts (retry.go). Each
// needs a closed breaker (breaker.go) and a slot of the limiter (limiter.go) before Atlas is asked.
// A refusal of these two is an [*atlas.Error] of [atlas.KindUnavailable] or [atlas.KindOverloaded],
// with Sent false. All of them tell tenants apart, by [atlas.TenantOf]; the zero Tenant is that
// of all callers that Atlas has not accepted yet.
//
// The package logs nothing. Its metrics have no label that Atlas or a caller chooses.
package resilient

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// Atlas is what a Client calls. *atlas.Client is one. Errors are *atlas.Error.
type Atlas interface {
	atlas.IdentityProvider
	CreateEphemeralToken(ctx context.Context, jwt atlas.JWT) (atlas.Token, error)
	DeleteEphemeralToken(ctx context.Context, jwt atlas.JWT) error
	Probe(ctx context.Context) (atlas.Probed, error)
}

// Config configures a Client. The zero value is ready to use.
type Config struct {
	// MaxCalls is the most creates and deletes that are at Atlas at a time; 0 means 256. One tenant
	// can have half of them.
	MaxCalls int
	// OnChange, if set, is called when the breaker opens, with what the last call at Atlas failed
	// with, and with nil when it closes. It must not block, nor call the Client.
	OnChange func(cause error)
	// Registerer, if set, takes the Client's metrics. It panics if they are registered already.
	Registerer prometheus.Registerer
}

const (
	defaultMaxCalls = 256
	// reservedConns are for what MaxCalls does not bound: logins, refreshes and probes, which are
	// few.
	reservedConns = 16
)

// Conns returns how many connections to Atlas there have to be, so that no admitted call waits for
// one: twice MaxCalls, for calls that still hang when an Atlas that was down is back, and some
// more.
func (c Config) Conns() int { return 2*cmp.Or(c.MaxCalls, defaultMaxCalls) + reservedConns }

// Client calls Atlas. It is safe for concurrent use. Make one for each host, share it, and Close it
// at the end.
type Client struct {
	atlas   Atlas
	budget  *budget
	breaker *breaker
	limiter *limiter
	metrics *metrics
}

// New returns a Client in front of next.
func New(next Atlas, config Config) (*Client, error) {
	if config.MaxCalls < 0 {
		return nil, fmt.Errorf("MaxCalls is %d: give a positive number, or 0 for %d", config.MaxCalls, defaultMaxCalls)
	}
	c := &Client{atlas: next, budget: newBudget(), limiter: newLimiter(cmp.Or(config.MaxCalls, defaultMaxCalls))}
	c.breaker = newBreaker(c.probe, func(cause error) {
		if cause != nil {
			c.limiter.abandon()
		}
		if config.OnChange != nil {
			config.OnChange(cause)
		}
	})
	c.metrics = newMetrics(config.Registerer, c)
	return c, nil
}

// Close ends the probes. The breaker does not open any more.
func (c *Client) Close() { c.breaker.close() }

// CreateEphemeralToken calls the method of that name, and retries whenever that may help.
func (c *Client) CreateEphemeralToken(ctx context.Context, jwt atlas.JWT) (atlas.Token, error) {
	return call(ctx, c, atlas.OpCreate, func() (atlas.Token, error) { return c.atlas.CreateEphemeralToken(ctx, jwt) })
}

// DeleteEphemeralToken calls the method of that name, and retries only what provably did not reach
// Atlas.
func (c *Client) DeleteEphemeralToken(ctx context.Context, jwt atlas.JWT) error {
	_, err := call(ctx, c, atlas.OpDelete, func() (struct{}, error) { return struct{}{}, c.atlas.DeleteEphemeralToken(ctx, jwt) })
	return err
}

// LogIn calls the method of that name, and retries only if no answer came.
func (c *Client) LogIn(ctx context.Context, secret atlas.UserAuthToken) (atlas.JWT, error) {
	return call(ctx, c, atlas.OpLogIn, func() (atlas.JWT, error) { return c.atlas.LogIn(ctx, secret) })
}

// RefreshJWT calls the method of that name, and retries as LogIn does.
func (c *Client) RefreshJWT(ctx context.Context, jwt atlas.JWT) (atlas.JWT, error) {
	return call(ctx, c, atlas.OpRefresh, func() (atlas.JWT, error) { return c.atlas.RefreshJWT(ctx, jwt) })
}

// Check returns what an operator should know, nil if all is well.
func (c *Client) Check() error { return c.breaker.check() }

// Stats is the present state of a Client.
type Stats struct {
	Open        bool   // the breaker is open: calls are refused
	Retries     uint64 // retries so far
	OutOfBudget uint64 // retries so far that the budget did not allow
	Limit       int    // how many creates and deletes may be at Atlas
	InFlight    int    // how many are
	Waiting     int    // how many wait to be
	Refused     uint64 // how many were refused so far, because too many were there
}

// Stats returns the present state.
func (c *Client) Stats() Stats {
	s := Stats{Open: c.breaker.check() != nil, Limit: c.limiter.slots}
	s.Retries, s.OutOfBudget = c.budget.counts()
	s.InFlight, s.Waiting, s.Refused = c.limiter.counts()
	return s
}

// attempt asks Atlas once, if the breaker and the limiter let it.
func (c *Client) attempt(ctx context.Context, op atlas.Operation, tenant atlas.Tenant, ask func() error) error {
	if err := c.breaker.admit(op); err != nil {
		return err
	}
	if isLimited(op) {
		slot, err := c.limiter.acquire(ctx, op, tenant)
		if slot != nil {
			defer slot.release()
		}
		if open := c.breaker.admit(op); open != nil { // it may have opened during the wait
			return open
		}
		if err != nil {
			return err
		}
	}
	began := time.Now()
	err := ask()
	took := time.Since(began)
	c.metrics.request(op, err, took)
	c.breaker.record(tenant, began, judge(ctx, err, took), err)
	return err
}

var errProbe = errors.New("the probe was answered with a server error")

// probe returns nil if Atlas answers.
func (c *Client) probe(ctx context.Context) error {
	began := time.Now()
	probed, err := c.atlas.Probe(ctx)
	if err == nil && probed.StatusCode >= http.StatusInternalServerError {
		err = &atlas.Error{Op: atlas.OpProbe, Kind: atlas.KindStatus, StatusCode: probed.StatusCode, Sent: true, Err: errProbe}
	}
	c.metrics.request(atlas.OpProbe, err, time.Since(began))
	return err
}

// isLimited reports whether an operation needs a slot. Logins and refreshes do not: there is one at
// a time for each identity, all of its calls depend on it, and it should not queue behind those of
// others.
func isLimited(op atlas.Operation) bool { return op == atlas.OpCreate || op == atlas.OpDelete }
