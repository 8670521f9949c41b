package atlas

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

const (
	// maxBodyBytes bounds an answer after decompression, against endless bodies and gzip bombs.
	maxBodyBytes = 64 << 10

	// The body of an answer that is not needed is read to its end if it takes no more than this,
	// because net/http reuses an HTTP/1.1 connection only then.
	drainBytes = 16 << 10
	drainTime  = 50 * time.Millisecond
)

// request is one operation as it goes to Atlas.
type request struct {
	op   Operation
	jwt  JWT               // "" if the endpoint needs none
	body map[string]string // sent as JSON; nil: none. Plain strings: a JWT would marshal redacted.
}

// endpoint is what is the same for all requests of an operation.
type endpoint struct {
	op         Operation
	method     string
	path       string // what follows Config.BaseURL
	authorized bool   // needs a JWT
	idempotent bool   // doing it twice is the same as doing it once

	url  *url.URL                // set by New
	span []trace.SpanStartOption // set by New
}

var endpoints = []endpoint{
	{op: OpCreate, method: http.MethodPost, path: "/ephemeral-token", authorized: true, idempotent: true},
	{op: OpDelete, method: http.MethodDelete, path: "/ephemeral-token", authorized: true},
	{op: OpLogIn, method: http.MethodPost, path: "/login/", idempotent: true},
	{op: OpRefresh, method: http.MethodPost, path: "/api-token-refresh/", idempotent: true},
	{op: OpProbe, method: http.MethodGet, path: "/ephemeral-token", idempotent: true},
}

// do makes one request and returns what decode makes of the body of its answer, a 200 or 201 with
// JSON in it. A nil decode takes any 2xx and ignores the body. Every error is an [*Error].
func do[T any](ctx context.Context, c *Client, r request, decode func([]byte) (T, error)) (answer T, err error) {
	ctx, span := c.startSpan(ctx, r.op)
	a := c.newAttempt(ctx, r)
	defer a.cancel()
	defer func() { endSpan(span, a.status, err) }()
	resp, err := a.send()
	if err != nil {
		return answer, err
	}
	defer resp.Body.Close()

	a.status = resp.StatusCode
	if err := a.checkStatus(resp, decode == nil); err != nil {
		a.drain(resp)
		return answer, err
	}
	if decode == nil {
		a.drain(resp)
		return answer, nil
	}
	if !isJSON(resp.Header.Get("Content-Type")) {
		a.drain(resp)
		return answer, a.error(KindInvalidResponse, errMediaType)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBodyBytes+1))
	if len(body) > maxBodyBytes {
		return answer, a.error(KindInvalidResponse, errTooLarge)
	}
	if err != nil {
		return answer, a.failed(err)
	}
	if answer, err = decode(body); err != nil {
		return answer, a.error(KindInvalidResponse, err)
	}
	return answer, nil
}

// attempt is one request on its way: the contexts that can end it, and what an Error says about it.
type attempt struct {
	*endpoint
	request request
	client  *Client
	caller  context.Context // the caller's own, to tell its end from that of our cap
	ctx     context.Context // the caller's, with our cap
	cancel  context.CancelFunc

	// For gotConn.
	conn    net.Conn    // the last that the request was given
	wrote   atomic.Bool // headers, to any connection
	repeats atomic.Bool // net/http would repeat it, and may not

	// For the Error.
	sent       atomic.Bool
	status     int
	retryAfter time.Duration
}

// newAttempt prepares a request. Call cancel when its answer has been read.
func (c *Client) newAttempt(ctx context.Context, r request) *attempt {
	a := &attempt{endpoint: c.endpoints[r.op], request: r, client: c, caller: ctx}
	a.ctx, a.cancel = context.WithTimeoutCause(ctx, c.timeout, errTimeout)
	return a
}

// send sends the request and returns the answer, whose body is still to be read and closed.
func (a *attempt) send() (*http.Response, error) {
	req, err := a.newRequest()
	if err != nil {
		return nil, err
	}
	// The transport itself, not an http.Client. All that a Client adds must not happen here: it
	// follows redirects, and even when told not to it parses a Location, with an error that quotes
	// it.
	resp, err := a.client.transport.Load().RoundTrip(req)
	if err != nil {
		return nil, a.failed(err)
	}
	return resp, nil
}

func (a *attempt) newRequest() (*http.Request, error) {
	// NoBody rather than an empty reader: a POST then says Content-Length: 0, and net/http may move
	// the request to another connection when HTTP/2 guarantees that it was not processed (RFC 9113
	// section 8.7).
	var body io.Reader = http.NoBody
	if a.request.body != nil {
		encoded, _ := json.Marshal(a.request.body) // never fails for strings
		body = bytes.NewReader(encoded)
	}
	ctx := httptrace.WithClientTrace(a.ctx, &httptrace.ClientTrace{
		GotConn:      a.gotConn,
		WroteHeaders: func() { a.wrote.Store(true) },
	})
	req, err := http.NewRequestWithContext(ctx, a.method, "", body)
	if err != nil {
		return nil, a.error(KindUnreachable, errRequest)
	}
	req.URL, req.Host = a.url, a.url.Host
	req.Header = http.Header{
		"Accept":       jsonValues,
		"Content-Type": jsonValues, // without a body too, as Atlas's own clients do
		"User-Agent":   a.client.userAgent,
	}
	a.client.propagator.Inject(a.ctx, propagation.HeaderCarrier(req.Header))
	if a.idempotent {
		// Named and without a value, it is not sent, and tells net/http that it may repeat the
		// request when a connection that was kept open turns out to be closed, which callers then
		// do not see.
		req.Header["Idempotency-Key"] = nil
	}
	if a.authorized {
		jwt := string(a.request.jwt)
		if !isToken68(jwt) {
			return nil, a.error(KindInvalidCredential, errJWT)
		}
		req.Header["Authorization"] = []string{"JWT " + jwt}
	}
	return req, nil
}

// gotConn is called with a connection that is ready for the request, before any of the request is
// written to it. So a request that never got here was not sent: look-up, dial, proxy and TLS
// handshake all come first.
//
// It is called again when net/http repeats the request of its own accord. Over HTTP/1.1 it does so
// only for one that is idempotent, when a connection that was kept turns out to be closed. Over
// HTTP/2 it does so if the peer guarantees that it did not process the stream, but also after a
// reset with PROTOCOL_ERROR, which guarantees nothing (golang.org/issue/47635). After such a reset
// it takes another connection. So a request that is not idempotent stays on the connection that it
// was written to.
func (a *attempt) gotConn(info httptrace.GotConnInfo) {
	a.sent.Store(true)
	if !a.idempotent && a.wrote.Load() && info.Conn != a.conn {
		a.repeats.Store(true)
		a.cancel() // net/http's HTTP/2 looks at the context before it writes
	}
	a.conn = info.Conn
}

// checkStatus returns an error unless the status is one of success.
func (a *attempt) checkStatus(resp *http.Response, any2xx bool) error {
	switch code := resp.StatusCode; {
	case code == http.StatusOK, code == http.StatusCreated:
		return nil
	case code >= 200 && code <= 299 && any2xx:
		return nil
	case code >= 300 && code <= 399:
		return a.error(KindRedirect, errRedirect)
	case code >= 400:
		a.retryAfter = parseRetryAfter(resp.Header.Get("Retry-After"), a.client.now())
		return a.error(KindStatus, statusError(code))
	default:
		return a.error(KindInvalidResponse, errStatus)
	}
}

// A Retry-After is clamped to these: never so soon that it is no wait, never so long that one wrong
// header stops a caller for a day.
const (
	minRetryAfter = time.Second
	maxRetryAfter = 5 * time.Minute
)

// parseRetryAfter returns how long a Retry-After header asks to wait from now on (RFC 9110 section
// 10.2.3), 0 if the value is neither a number of seconds nor a date.
func parseRetryAfter(value string, now time.Time) time.Duration {
	wait := maxRetryAfter
	if seconds, err := strconv.ParseUint(value, 10, 64); err == nil {
		if seconds < uint64(maxRetryAfter/time.Second) {
			wait = time.Duration(seconds) * time.Second
		}
	} else if !errors.Is(err, strconv.ErrRange) {
		at, err := http.ParseTime(value)
		if err != nil {
			return 0
		}
		wait = at.Sub(now)
	}
	return min(max(wait, minRetryAfter), maxRetryAfter)
}

// drain reads the rest of a small body, so that the connection can be used again. What the
// operation returns is settled by then, so it waits for drainTime at most, and what fails costs a
// connection and nothing else.
func (a *attempt) drain(resp *http.Response) {
	if resp.StatusCode < 200 || resp.ContentLength > drainBytes {
		return // 101 Switching Protocols has a body that never ends
	}
	timer := time.AfterFunc(a.client.drainTime, a.cancel)
	defer timer.Stop()
	_, _ = io.CopyN(io.Discard, resp.Body, drainBytes)
}

// failed is the Error for an answer that did not come, or not to its end.
func (a *attempt) failed(err error) *Error {
	if ended := a.caller.Err(); ended != nil {
		return a.error(KindCanceled, ended)
	}
	switch {
	case errors.Is(context.Cause(a.ctx), errTimeout):
		return a.error(KindTimeout, fmt.Errorf("%w within %v", errTimeout, a.client.timeout))
	case a.repeats.Load():
		return a.error(KindUnreachable, errRepeat)
	}
	return a.error(classify(err))
}

func (a *attempt) error(kind Kind, cause error) *Error {
	return &Error{Op: a.op, Kind: kind, StatusCode: a.status, RetryAfter: a.retryAfter, Sent: a.sent.Load(), Err: cause}
}

// mediaType is that of all bodies, in both directions.
const mediaType = "application/json"

var jsonValues = []string{mediaType} // net/http only reads it

// isJSON reports whether a Content-Type is application/json, whatever its parameters.
func isJSON(contentType string) bool {
	parsed, _, err := mime.ParseMediaType(contentType)
	return err == nil && parsed == mediaType
}

// token68 are the characters of a credential (RFC 9110 section 11.2), except the padding.
const token68 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/"

// isToken68 reports whether s is a credential as RFC 9110 section 11.2 writes one. It includes each
// JWT, and nothing that could end a header line.
func isToken68(s string) bool {
	s = strings.TrimRight(s, "=")
	return s != "" && strings.Trim(s, token68) == ""
}

// setTracing sets the spans of requests. Their attributes are those of OpenTelemetry's conventions
// for HTTP clients; there is no header and no body in them, and the URL has nothing secret.
func (c *Client) setTracing(config Config) {
	c.propagator = propagation.NewCompositeTextMapPropagator() // injects nothing
	if config.Tracer == nil {
		return
	}
	c.tracer = config.Tracer.Tracer(modulePath + "/atlas")
	c.propagator = config.Propagator
	if c.propagator == nil {
		c.propagator = propagation.TraceContext{}
	}
	for _, e := range c.endpoints {
		port, err := strconv.Atoi(e.url.Port())
		if err != nil {
			port = 443
		}
		e.span = []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
			attribute.String("http.request.method", e.method),
			attribute.String("server.address", e.url.Hostname()),
			attribute.Int("server.port", port),
			attribute.String("url.full", e.url.String()),
		)}
	}
}

// startSpan begins the span of a request; nil without a tracer. Its name is what is the same for
// all requests of one operation.
func (c *Client) startSpan(ctx context.Context, op Operation) (context.Context, trace.Span) {
	if c.tracer == nil {
		return ctx, nil
	}
	e := c.endpoints[op]
	return c.tracer.Start(ctx, e.method+" "+e.path, e.span...)
}

// endSpan records how the request ended. err is nil or an *Error, whose cause is left out.
func endSpan(span trace.Span, status int, err error) {
	if span == nil {
		return
	}
	if status != 0 {
		span.SetAttributes(attribute.Int("http.response.status_code", status))
	}
	if e, ok := errors.AsType[*Error](err); ok {
		kind := string(e.Kind)
		if e.Kind == KindStatus {
			kind = strconv.Itoa(status)
		}
		span.SetAttributes(attribute.String("error.type", kind))
		span.SetStatus(codes.Error, "")
	}
	span.End()
}
