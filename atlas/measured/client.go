// Package measured counts and times the requests that go to Atlas, and shows what package resilient does with them. No label
// has a value that Atlas or a caller chooses.
package measured

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/resilient"
)

// Client counts and times what it asks of the next. It has the methods of [atlas.Client], and belongs between that and what
// repeats or refuses calls, so that it counts what really goes to Atlas. It is a prometheus.Collector to be registered.
type Client struct {
	next resilient.Atlas

	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	known    map[atlas.Operation]*operation
}

// operation has the metrics of one.
type operation struct {
	outcomes [outcomes]prometheus.Counter
	seconds  prometheus.Observer
}

// outcome is how a request ended.
type outcome int

const (
	ok outcome = iota
	refused
	rateLimited
	serverError
	unreachable
	timeout
	badTLS
	redirect
	invalidResponse
	canceled
	notSent
	other
	outcomes // how many there are
)

var outcomeNames = [outcomes]string{
	ok: "ok", refused: "refused", rateLimited: "rate_limited", serverError: "server_error", unreachable: "unreachable",
	timeout: "timeout", badTLS: "tls", redirect: "redirect", invalidResponse: "invalid_response", canceled: "canceled",
	notSent: "not_sent", other: "other",
}

// outcomeOf says how a request ended.
func outcomeOf(err error) outcome {
	if err == nil {
		return ok
	}
	e, isAtlas := errors.AsType[*atlas.Error](err)
	if !isAtlas {
		return other
	}
	switch e.Kind {
	case atlas.KindUnreachable:
		return unreachable
	case atlas.KindTLS:
		return badTLS
	case atlas.KindTimeout:
		return timeout
	case atlas.KindCanceled:
		return canceled
	case atlas.KindRedirect:
		return redirect
	case atlas.KindInvalidResponse:
		return invalidResponse
	case atlas.KindInvalidCredential:
		return notSent
	case atlas.KindStatus:
		switch {
		case e.StatusCode >= 500:
			return serverError
		case e.StatusCode == http.StatusTooManyRequests:
			return rateLimited
		}
		return refused
	}
	return other
}

// New returns a Client in front of next.
func New(next resilient.Atlas) *Client {
	c := &Client{
		next: next,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokend_atlas_requests_total",
			Help: "Requests to Atlas that have ended, repeats included: refused is any other 4xx than 429, which is rate_limited; server_error is 5xx; canceled is that no caller waited any longer.",
		}, []string{"operation", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tokend_atlas_request_duration_seconds", Help: "How long requests to Atlas took, however they ended.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"operation"}),
		known: map[atlas.Operation]*operation{},
	}
	for _, op := range []atlas.Operation{atlas.OpCreate, atlas.OpDelete, atlas.OpLogIn, atlas.OpRefresh} {
		known := &operation{seconds: c.seconds.WithLabelValues(string(op))}
		for o, name := range outcomeNames {
			known.outcomes[o] = c.requests.WithLabelValues(string(op), name)
		}
		c.known[op] = known
	}
	return c
}

// measure asks, and counts how that ends.
func measure[T any](c *Client, op atlas.Operation, ask func() (T, error)) (T, error) {
	start := time.Now()
	answer, err := ask()
	known := c.known[op]
	known.outcomes[outcomeOf(err)].Inc()
	known.seconds.Observe(time.Since(start).Seconds())
	return answer, err
}

// CreateEphemeralToken is that of [atlas.Client].
func (c *Client) CreateEphemeralToken(ctx context.Context, jwt atlas.JWT) (atlas.Token, error) {
	return measure(c, atlas.OpCreate, func() (atlas.Token, error) { return c.next.CreateEphemeralToken(ctx, jwt) })
}

// DeleteEphemeralToken is that of [atlas.Client].
func (c *Client) DeleteEphemeralToken(ctx context.Context, jwt atlas.JWT) error {
	_, err := measure(c, atlas.OpDelete, func() (struct{}, error) {
		return struct{}{}, c.next.DeleteEphemeralToken(ctx, jwt)
	})
	return err
}

// LogIn is that of [atlas.Client].
func (c *Client) LogIn(ctx context.Context, secret atlas.UserAuthToken) (atlas.JWT, error) {
	return measure(c, atlas.OpLogIn, func() (atlas.JWT, error) { return c.next.LogIn(ctx, secret) })
}

// RefreshJWT is that of [atlas.Client].
func (c *Client) RefreshJWT(ctx context.Context, jwt atlas.JWT) (atlas.JWT, error) {
	return measure(c, atlas.OpRefresh, func() (atlas.JWT, error) { return c.next.RefreshJWT(ctx, jwt) })
}

// Describe implements prometheus.Collector.
func (c *Client) Describe(ch chan<- *prometheus.Desc) {
	c.requests.Describe(ch)
	c.seconds.Describe(ch)
}

// Collect implements prometheus.Collector.
func (c *Client) Collect(ch chan<- prometheus.Metric) {
	c.requests.Collect(ch)
	c.seconds.Collect(ch)
}
