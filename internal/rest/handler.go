// Package rest serves the service over HTTP/1.1 and HTTP/2: a strict front that knows the routes,
// and grpc-gateway behind it, which turns requests into calls and answers in Atlas's form.
package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
	"github.com/ForstaLabs/ephemeral-token-service/internal/call"
)

// handler is the front: it refuses requests that are not well-formed requests for one of the routes
// before the gateway sees them, and turns Grpc-Timeout into a deadline. The gateway's own routing
// is lenient (it unescapes paths, for example) and its errors differ.
type handler struct {
	Config

	routes  routes
	gateway *runtime.ServeMux
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	ctx := metadata.NewIncomingContext(peer.NewContext(r.Context(), requestPeer(r)), incomingHeaders(r.Header))
	timeout, timeoutErr := grpcTimeout(r.Header.Values(grpcTimeoutHeader))
	if timeout != noTimeout {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	ctx, _ = call.WithREST(ctx, r.Header, func(answer metadata.MD) { setHeaders(w.Header(), answer) })
	r = r.WithContext(ctx)

	w.Header()["Cache-Control"] = noStore
	w.Header()["X-Content-Type-Options"] = noSniff
	overloaded, brief := h.Overloaded(ctx)
	var err error
	if overloaded {
		err = &apierror.Error{Reason: apierror.Overloaded}
	} else {
		err = h.serve(w, r, timeoutErr)
	}
	if err != nil {
		h.refuse(w, r, time.Since(start), apierror.From(err), brief)
	}
}

// serve answers a request, or returns why it is refused.
func (h *handler) serve(w http.ResponseWriter, r *http.Request, timeoutErr error) (err error) {
	defer call.Recover(&err) // for code outside the call chain: net/http would print the panic's value
	if refusal := h.check(w, r); refusal != nil {
		return refusal
	}
	if timeoutErr != nil {
		return &apierror.Error{Reason: apierror.RequestMalformed, Cause: timeoutErr}
	}
	if page, ok := h.Pages[r.URL.Path]; ok {
		page.ServeHTTP(w, r)
		return nil
	}
	if err := checkOrigin(r); err != nil { // goes on as a call, for the audit record
		call.RecordFrom(r.Context()).Forbid(&apierror.Error{Reason: apierror.CallerNotPermitted, Cause: err})
	}
	// The gateway gets no headers: the call has those it needs, and the gateway would add others.
	r.Header, r.Host, r.RemoteAddr = nil, "", ""
	h.gateway.ServeHTTP(w, r)
	return nil
}

// refuse answers, logs and counts a request that does not become a call.
func (h *handler) refuse(w http.ResponseWriter, r *http.Request, took time.Duration, e *apierror.Error, brief bool) {
	w.Header().Set(call.RequestIDHeader, call.RecordFrom(r.Context()).RequestID())
	writeError(w, e, brief)
	h.Metrics.CountFailure(r.Context(), e)
	call.Log(r.Context(), h.Logger, h.routes.logName(r), took, e)
}

// Headers of every answer. The slices are shared and must not be changed.
var (
	noStore = []string{"no-store"} // RFC 9111 §5.2.2.5: a token must not stay in any cache
	noSniff = []string{"nosniff"}
)

// check returns what is wrong with a request before it becomes a call, or nil. It reads the whole
// body.
func (h *handler) check(w http.ResponseWriter, r *http.Request) *apierror.Error {
	if headerBytes(r) > call.MaxHeaderBytes {
		return &apierror.Error{Reason: apierror.HeadersTooLarge}
	}
	// The path is compared as the client wrote it, neither cleaned nor unescaped, as a proxy in
	// front has authorised it.
	methods, ok := h.routes[r.URL.EscapedPath()]
	if !ok || r.URL.EscapedPath() != r.URL.Path {
		return &apierror.Error{Reason: apierror.RouteNotFound, Hint: h.routes.missed(r).hint}
	}
	if !slices.Contains(methods, r.Method) {
		w.Header().Set("Allow", strings.Join(methods, ", "))
		return &apierror.Error{Reason: apierror.MethodNotAllowed}
	}
	body, err := readBody(w, r)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return &apierror.Error{Reason: apierror.RequestTooLarge}
	case err != nil:
		return &apierror.Error{Reason: apierror.RequestMalformed, Cause: errBodyUnreadable}
	case len(body) > 0 && !isPlainJSON(r.Header):
		if isRPC(r) {
			return &apierror.Error{Reason: apierror.UnsupportedMediaType, Hint: h.routes.missed(r).hint}
		}
		return &apierror.Error{Reason: apierror.UnsupportedMediaType}
	case !isShallowJSON(body):
		return &apierror.Error{Reason: apierror.RequestMalformed, Cause: errUndecodable}
	}
	r.Body = http.NoBody
	if len(body) > 0 {
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	return nil
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.Body == http.NoBody {
		return nil, nil
	}
	return io.ReadAll(http.MaxBytesReader(w, r.Body, call.MaxMessageBytes))
}

// Why a body was not read, without its content.
var (
	errBodyUnreadable = errors.New("the body ended early or came too slowly")
	errUndecodable    = errors.New("the body is not one JSON object, or nests too deep")
)

// headerBytes returns the size of a request's headers as HTTP/2 counts it (RFC 9113, section
// 6.5.2), so that both transports have the same limit.
func headerBytes(r *http.Request) int {
	n := len(r.Method) + len(r.RequestURI) + len(r.Host)
	for name, values := range r.Header {
		for _, value := range values {
			n += len(name) + len(value) + 32
		}
	}
	return n
}

// isPlainJSON reports whether a body is declared as JSON or not at all, and not compressed.
func isPlainJSON(h http.Header) bool {
	for _, encoding := range h.Values("Content-Encoding") {
		if encoding != "" && !strings.EqualFold(encoding, "identity") {
			return false
		}
	}
	declared := h.Values("Content-Type")
	if len(declared) == 0 {
		return true
	}
	mediaType, _, err := mime.ParseMediaType(declared[0])
	return len(declared) == 1 && err == nil && mediaType == "application/json"
}

// maxJSONDepth is how deep a body may nest. Requests have no fields, so the content is ignored.
const maxJSONDepth = 8

// isShallowJSON reports whether body is empty, or JSON that no decoder has to recurse far into.
func isShallowJSON(body []byte) bool {
	if len(body) == 0 {
		return true
	}
	depth, values := 0, 0
	for dec := json.NewDecoder(bytes.NewReader(body)); ; {
		token, err := dec.Token()
		if err != nil {
			return errors.Is(err, io.EOF) && depth == 0
		}
		if depth == 0 {
			values++ // a second value is an error
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth > maxJSONDepth || values > 1 {
			return false
		}
	}
}

// requestPeer returns the peer of a REST request in gRPC's form. X-Forwarded-For is ignored: any
// client can set it.
func requestPeer(r *http.Request) *peer.Peer {
	addr, _ := netip.ParseAddrPort(r.RemoteAddr)
	p := &peer.Peer{Addr: net.TCPAddrFromAddrPort(addr)}
	if r.TLS != nil {
		p.AuthInfo = credentials.TLSInfo{
			State:          *r.TLS,
			CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		}
	}
	return p
}

// grpcTimeoutHeader has the timeout of a REST call, in gRPC's notation.
const grpcTimeoutHeader = "Grpc-Timeout"

// noTimeout means that a call has no timeout, or one longer than a time.Duration holds.
const noTimeout time.Duration = math.MaxInt64

var errTimeoutHeader = errors.New("the Grpc-Timeout header is not up to 8 digits and a unit")

// grpcTimeout parses the values of a Grpc-Timeout header: none, or one with up to 8 digits and a
// unit (gRPC over HTTP/2, section Requests).
func grpcTimeout(values []string) (time.Duration, error) {
	if len(values) == 0 {
		return noTimeout, nil
	}
	value := values[0]
	if len(values) > 1 || len(value) < 2 || len(value) > 9 {
		return noTimeout, errTimeoutHeader
	}
	unit, ok := timeoutUnits[value[len(value)-1]]
	n, err := strconv.ParseUint(value[:len(value)-1], 10, 32)
	switch {
	case !ok || err != nil:
		return noTimeout, errTimeoutHeader
	case time.Duration(n) > noTimeout/unit:
		return noTimeout, nil
	}
	return time.Duration(n) * unit, nil
}

var timeoutUnits = map[byte]time.Duration{
	'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond,
}
