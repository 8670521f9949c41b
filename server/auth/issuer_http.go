package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// The bounds of a request to an issuer.
const (
	issuerTimeout     = 5 * time.Second
	maxIssuerResponse = 1 << 20
)

var (
	errNotHTTPS      = errors.New("the issuer's documents must be at https URLs")
	errIssuerTooLong = errors.New("the issuer's answer is larger than 1 MiB")

	errKeysUnreadable = errors.New("the document is not a JSON Web Key Set")
)

// issuerTransport fetches an issuer's documents: over HTTPS only, whole or not at all, within bounds of its own, and not
// beyond the issuer's removal from the policy. Whoever waits for one does so with a context of their own.
type issuerTransport struct {
	base http.RoundTripper
	life context.Context // of what the transport belongs to, not of a call
}

func (t issuerTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" {
		return nil, errNotHTTPS
	}
	ctx, cancel := context.WithTimeout(req.Context(), issuerTimeout)
	defer cancel()
	defer context.AfterFunc(t.life, cancel)()
	resp, err := t.base.RoundTrip(req.Clone(ctx))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		// As an error, because go-oidc would quote the body. A redirect ends here too.
		return nil, fmt.Errorf("the issuer answered with status %d", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxIssuerResponse+1))
	switch {
	case err != nil:
		return nil, err
	case len(body) > maxIssuerResponse:
		return nil, errIssuerTooLong
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

// keyTransport answers with what it got last for as long as that is recent. go-oidc fetches an issuer's keys again for each
// token that the ones it has do not verify; without this, whoever sends such tokens would have us flood the issuer.
type keyTransport struct {
	base  http.RoundTripper
	every time.Duration

	mu   sync.Mutex // guards what follows; not held while fetching
	at   time.Time
	resp *http.Response
	body []byte
	err  error
}

func (t *keyTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if resp, err, recent := t.last(); recent {
		return resp, err
	}
	at := time.Now()
	resp, err := t.base.RoundTrip(req)
	var body []byte
	if err == nil {
		body, err = io.ReadAll(resp.Body) // from memory: see issuerTransport
		_ = resp.Body.Close()
	}
	t.mu.Lock()
	t.at, t.resp, t.body, t.err = at, resp, body, err
	t.mu.Unlock()
	return t.answer(resp, body, err)
}

func (t *keyTransport) last() (*http.Response, error, bool) { //nolint:revive // the error is the answer's
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.at.IsZero() || time.Since(t.at) >= t.every {
		return nil, nil, false
	}
	resp, err := t.answer(t.resp, t.body, t.err)
	return resp, err, true
}

// answer gives each reader a body of its own.
func (*keyTransport) answer(resp *http.Response, body []byte, err error) (*http.Response, error) {
	if err != nil {
		return nil, err
	}
	fresh := *resp
	fresh.Body = io.NopCloser(bytes.NewReader(body))
	return &fresh, nil
}
