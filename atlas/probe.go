package atlas

import (
	"context"
	"crypto/x509"
	"net/http"
	"time"
)

// Probed is how a server answered a probe.
type Probed struct {
	// StatusCode is the HTTP status. Atlas refuses a probe: 401, or 405 since there is nothing to
	// GET.
	StatusCode int
	// Protocol is HTTP's version.
	Protocol string
	// Certificate is the server's own. It is for the host, and signed by an authority that the
	// Client trusts.
	Certificate *x509.Certificate
	// Clock is how far the server's clock is ahead of this machine's, by its Date header, which has
	// whole seconds. HasClock is false if there is no such header.
	Clock    time.Duration
	HasClock bool
}

// Probe sends GET /ephemeral-token without a credential, which changes nothing. An answer of any
// status is a success; every error is an [*Error].
func (c *Client) Probe(ctx context.Context) (Probed, error) {
	a := &attempt{client: c, caller: ctx, op: OpProbe, idempotent: true}
	a.ctx, a.cancel = context.WithTimeoutCause(ctx, c.timeout, errTimeout)
	defer a.cancel()

	req, err := a.newRequest(request{op: OpProbe, method: http.MethodGet, path: pathToken, idempotent: true})
	if err != nil {
		return Probed{}, err
	}
	before := c.now()
	resp, err := c.transport.Load().RoundTrip(req)
	if err != nil {
		return Probed{}, a.failed(err)
	}
	after := c.now()
	defer resp.Body.Close()
	a.drain(resp)

	probed := Probed{StatusCode: resp.StatusCode, Protocol: resp.Proto}
	if resp.TLS != nil && len(resp.TLS.PeerCertificates) > 0 {
		probed.Certificate = resp.TLS.PeerCertificates[0]
	}
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		probed.Clock, probed.HasClock = clockAhead(date, before, after), true
	}
	return probed, nil
}

// clockAhead is how far a clock that showed date, cut off to the second, at some time between
// before and after is ahead at least; negative if it is behind.
func clockAhead(date, before, after time.Time) time.Duration {
	switch {
	case date.After(after):
		return date.Sub(after)
	case date.Add(time.Second).Before(before):
		return date.Add(time.Second).Sub(before)
	}
	return 0
}
