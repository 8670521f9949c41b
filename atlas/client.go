// Package atlas is a client of Forsta's Atlas API: it creates and deletes an org's ephemeral user
// token, over HTTPS.
//
// A [Client] makes exactly one attempt per call, and keeps nothing between calls but connections;
// only if a connection that was kept turns out to be closed, or HTTP/2 refuses a stream, net/http
// takes another. Retrying, sharing and caching are for its callers. It validates every part of an
// answer, and connects to no host but the configured one. Every failure is an [*Error] that says
// why it failed, and whether Atlas may have received the request.
//
// An [Identity] is one Atlas user: it logs in, and refreshes its JWT.
//
// The package imports nothing else of this module, reads no environment variables but those for
// proxies that net/http reads, and logs nothing. But net/http does: when a server sends unexpected
// bytes on an idle HTTP/1.1 connection, Transport writes them to the standard log package, and has
// no setting against it. A program that must not log any part of an answer can give [log.SetOutput]
// a writer that discards everything.
package atlas

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

const (
	modulePath       = "github.com/ForstaLabs/ephemeral-token-service"
	defaultUserAgent = "ephemeral-token-service (+https://" + modulePath + ")"

	defaultTimeout  = 10 * time.Second
	defaultMaxConns = 128

	// Dialing and the handshake each fail well within the default cap, so that a host that swallows
	// packets can be told from a slow Atlas. A dial needs no more: net.Dialer tries IPv4 300 ms
	// after an IPv6 that does not answer (RFC 8305, Happy Eyeballs).
	dialTimeout      = 4 * time.Second
	handshakeTimeout = 4 * time.Second

	// Load balancers close an idle connection after 60 s or more. We close ours first, because a
	// DELETE that meets a connection as it closes has an unknown outcome.
	idleTimeout = 50 * time.Second

	// A connection on which nothing arrives for the first is pinged, and given up after the second:
	// a dead one is noticed within a call's cap instead of after TCP's quarter of an hour
	// (golang.org/issue/31643).
	pingAfter   = 5 * time.Second
	pingTimeout = 3 * time.Second

	maxHeaderBytes = 16 << 10
)

// Config says how to reach Atlas.
type Config struct {
	// BaseURL is where Atlas's API begins, such as "https://atlas.forsta.io/v1". It is https only
	// and has no user, query or fragment; slashes at its end are dropped. Required.
	BaseURL string

	// RootCAs are the certificate authorities to trust; nil means the system's.
	RootCAs *x509.CertPool

	// Certificate is the client certificate, for a server that requests one, such as a proxy in
	// front of Atlas; nil: none.
	Certificate *tls.Certificate

	// Timeout is the longest that one operation may take, connecting included; 0 means 10 seconds.
	// An earlier deadline of the caller's context takes precedence.
	Timeout time.Duration

	// MaxConns is how many connections to Atlas are open at once, and how many are kept when idle;
	// 0 means 128. Calls beyond them wait. It bounds HTTP/1.1, where a call occupies a connection.
	// Over HTTP/2 calls share one, and net/http opens another whenever Atlas's limit of concurrent
	// streams is reached.
	MaxConns int

	// Tracer makes a span of each request; nil: there are none.
	Tracer trace.TracerProvider

	// Propagator writes the span into headers for Atlas; nil means W3C Trace Context. Without a
	// Tracer it is not used.
	Propagator propagation.TextMapPropagator

	// DialContext connects to Atlas, or to the proxy in front of it; nil means a net.Dialer. It
	// needs its own timeout for a host that does not answer.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)

	// UserAgent is the User-Agent header, in printable ASCII; "" means the name of this module.
	UserAgent string
}

// Client calls Atlas. It is safe for concurrent use; make one and share it, because it owns a pool
// of connections.
type Client struct {
	endpoints  map[Operation]*endpoint
	userAgent  []string
	timeout    time.Duration
	drainTime  time.Duration // see drain
	maxConns   int
	dial       func(ctx context.Context, network, addr string) (net.Conn, error)
	transport  atomic.Pointer[http.Transport]
	tracer     trace.Tracer // nil: no spans
	propagator propagation.TextMapPropagator
	now        func() time.Time
}

// New returns a Client, or an error for each mistake in the configuration, joined. It does not
// connect.
//
// An HTTPS proxy is taken from the environment, as [http.ProxyFromEnvironment] describes. The
// caller has to check that it is one that net/http can use.
func New(config Config) (*Client, error) {
	baseURL, err := checkBaseURL(config.BaseURL)
	errs := []error{err}
	if config.Timeout < 0 {
		errs = append(errs, fmt.Errorf("the Timeout is %v: give a positive duration, or 0 for %v", config.Timeout, defaultTimeout))
	}
	if config.MaxConns < 0 {
		errs = append(errs, fmt.Errorf("MaxConns is %d: give a positive number, or 0 for %d", config.MaxConns, defaultMaxConns))
	}
	if strings.ContainsFunc(config.UserAgent, func(r rune) bool { return r < ' ' || r > '~' }) {
		errs = append(errs, errors.New("UserAgent has characters that a header cannot carry: give printable ASCII"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}

	c := &Client{
		endpoints: map[Operation]*endpoint{},
		userAgent: []string{cmp.Or(config.UserAgent, defaultUserAgent)},
		timeout:   cmp.Or(config.Timeout, defaultTimeout),
		drainTime: drainTime,
		maxConns:  cmp.Or(config.MaxConns, defaultMaxConns),
		dial:      config.DialContext,
		now:       time.Now,
	}
	for _, e := range endpoints {
		if e.url, err = url.Parse(strings.TrimRight(baseURL, "/") + e.path); err != nil {
			return nil, errNotURL
		}
		c.endpoints[e.op] = &e
	}
	c.setTracing(config)
	if c.dial == nil {
		c.dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	c.transport.Store(c.newTransport(config.RootCAs, config.Certificate))
	return c, nil
}

// SetTLS replaces Config's RootCAs and Certificate. Calls in progress finish on their connections.
// Later calls make new ones, so a certificate is not trusted longer than its authority.
func (c *Client) SetTLS(roots *x509.CertPool, certificate *tls.Certificate) {
	old := c.transport.Swap(c.newTransport(roots, certificate))
	old.CloseIdleConnections() // those in use close as they become idle
}

func (c *Client) newTransport(roots *x509.CertPool, certificate *tls.Certificate) *http.Transport {
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	if certificate != nil {
		tlsConfig.Certificates = []tls.Certificate{*certificate}
	}
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		OnProxyConnectResponse: checkProxyAnswer,
		DialContext:            c.dial,
		TLSClientConfig:        tlsConfig,
		TLSHandshakeTimeout:    handshakeTimeout,
		MaxConnsPerHost:        c.maxConns,
		MaxIdleConns:           c.maxConns,
		MaxIdleConnsPerHost:    c.maxConns, // the default of 2 would close and dial anew under load
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeaderBytes,
		ForceAttemptHTTP2:      true, // a Transport with a DialContext of its own leaves HTTP/2 out otherwise
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: pingAfter,
			PingTimeout:     pingTimeout,
			// Flow control: an answer that we would refuse for its size is not buffered either. The
			// default is 4 MiB for each call in progress.
			MaxReceiveBufferPerStream: maxBodyBytes,
			// No table of sent headers (HPACK): each new JWT would push the others out of it, which
			// takes an eighth of a call's CPU, and the other end would keep JWTs in its copy.
			MaxEncoderHeaderTableSize: 1,
		},
	}
}

// CreateEphemeralToken returns the current ephemeral user token of the org in the JWT, which Atlas
// makes if there is none. Calling it twice gives the same token until it is deleted, so it is safe
// to repeat.
//
// Every error is an [*Error].
func (c *Client) CreateEphemeralToken(ctx context.Context, jwt JWT) (Token, error) {
	return do(ctx, c, request{op: OpCreate, jwt: jwt}, decodeToken)
}

// DeleteEphemeralToken unsets the ephemeral user token of the org in the JWT. Any 2xx is success:
// what was asked for is done, whatever the answer's body says.
//
// Every error is an [*Error]. It is safe to repeat only if the request was not sent ([Error.Sent]):
// a late repeat could delete a token that was created in between.
func (c *Client) DeleteEphemeralToken(ctx context.Context, jwt JWT) error {
	_, err := do[struct{}](ctx, c, request{op: OpDelete, jwt: jwt}, nil)
	return err
}

// LogIn trades a bot's userauthtoken for a JWT. A refused one is an [*Error] of KindStatus with
// status 400.
func (c *Client) LogIn(ctx context.Context, secret UserAuthToken) (JWT, error) {
	body := map[string]string{"userauthtoken": string(secret)}
	return do(ctx, c, request{op: OpLogIn, body: body}, decodeJWT)
}

// RefreshJWT trades a JWT that has not expired for one with a later exp. Atlas refuses it, as an
// [*Error] of KindStatus with status 400, once the login behind it is older than Atlas's refresh
// window.
func (c *Client) RefreshJWT(ctx context.Context, jwt JWT) (JWT, error) {
	body := map[string]string{"token": string(jwt)}
	return do(ctx, c, request{op: OpRefresh, body: body}, decodeJWT)
}

// CloseIdleConnections closes the connections that no call is using. The Client stays usable.
func (c *Client) CloseIdleConnections() { c.transport.Load().CloseIdleConnections() }

var errNotURL = errors.New("the base URL is not a URL: give one such as https://atlas.forsta.io/v1")

// checkBaseURL returns s, or an error for each mistake in it. It never quotes s, which may hold a
// password.
func checkBaseURL(s string) (string, error) {
	if s == "" {
		return "", errors.New("the base URL is empty: give Atlas's address, such as https://atlas.forsta.io/v1")
	}
	u, err := url.Parse(s)
	if err != nil {
		return "", errNotURL
	}
	port, portErr := strconv.ParseUint(cmp.Or(u.Port(), "443"), 10, 16)
	var errs []error
	for _, check := range []struct {
		failed bool
		text   string
	}{
		{u.Scheme != "https", "does not begin with https://: no other scheme is allowed, because every request carries a credential"},
		{u.Hostname() == "", "has no host: give one such as https://atlas.forsta.io/v1"},
		{port == 0 || portErr != nil, "has a port that is not within 1 to 65535"},
		{u.User != nil, "has a user or password: remove it, because the only credential is the JWT of each call"},
		{u.RawQuery != "" || u.ForceQuery, "has a query: remove the ? and what follows it"},
		{strings.Contains(s, "#"), "has a fragment: remove the # and what follows it"},
	} {
		if check.failed {
			errs = append(errs, errors.New("the base URL "+check.text))
		}
	}
	return s, errors.Join(errs...)
}

// checkProxyAnswer returns our own error: the one of net/http quotes the proxy's reason phrase.
func checkProxyAnswer(_ context.Context, _ *url.URL, _ *http.Request, answer *http.Response) error {
	if answer.StatusCode != http.StatusOK {
		return proxyError(answer.StatusCode)
	}
	return nil
}

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
	a := c.newAttempt(ctx, request{op: OpProbe})
	defer a.cancel()
	before := c.now()
	resp, err := a.send()
	if err != nil {
		return Probed{}, err
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
