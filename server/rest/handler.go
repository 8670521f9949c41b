// Package rest is the service over HTTP/1.1 and HTTP/2: a strict front that knows the routes, the gateway behind it that turns a
// request into a call, and the answers in the form that Atlas gives them.
package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/ForstaLabs/ephemeral-token-service/server/apierror"
	"github.com/ForstaLabs/ephemeral-token-service/server/chain"
)

// handler is the front: it refuses what is not a well-formed request for one of the routes before
// the gateway sees it. The gateway's own routing is lenient (it unescapes paths, for one) and its errors are not ours.
type handler struct {
	routes  routes
	gateway http.Handler
	log     *slog.Logger
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	ctx, id := chain.WithRequestID(r.Context(), r.Header.Values(chain.RequestIDHeader))
	timeout, timeoutErr := grpcTimeout(r.Header.Values(grpcTimeoutHeader))
	if timeout != noTimeout {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	r = r.WithContext(peer.NewContext(ctx, requestPeer(r)))
	r.Header.Del(grpcTimeoutHeader) // the gateway would read it again, and take zero for none

	w.Header().Set("Cache-Control", "no-store") // RFC 9111 §5.2.2.5: a token must not stay in any cache
	w.Header().Set("X-Content-Type-Options", "nosniff")
	refuse := func(e *apierror.Error) {
		w.Header().Set(chain.RequestIDHeader, id)
		writeError(w, e)
		chain.Log(r.Context(), h.log, chain.Call{Method: h.routes.logName(r), RequestID: id, Duration: time.Since(start), Err: e})
	}
	// The call chain recovers by itself. This is for what is around it: net/http would print the panic's value.
	defer func() {
		if v := recover(); v != nil {
			refuse(chain.Panicked(v))
		}
	}()
	if refusal := h.check(w, r); refusal != nil {
		refuse(refusal)
		return
	}
	if timeoutErr != nil {
		refuse(&apierror.Error{Reason: apierror.RequestMalformed, Cause: timeoutErr})
		return
	}
	h.gateway.ServeHTTP(w, r)
}

// check says what is wrong with a request before it becomes a call, nil if nothing is. It reads the body whole.
func (h *handler) check(w http.ResponseWriter, r *http.Request) *apierror.Error {
	if headerBytes(r) > chain.MaxHeaderBytes {
		return &apierror.Error{Reason: apierror.HeadersTooLarge}
	}
	// As the client wrote it, neither cleaned nor unescaped: what a proxy in front of us has authorised is what is compared.
	methods, ok := h.routes[r.URL.EscapedPath()]
	if !ok || r.URL.EscapedPath() != r.URL.Path {
		return &apierror.Error{Reason: apierror.RouteNotFound}
	}
	if !slices.Contains(methods, r.Method) {
		w.Header().Set("Allow", strings.Join(methods, ", "))
		return &apierror.Error{Reason: apierror.MethodNotAllowed}
	}
	if !isPlainJSON(r.Header) {
		return &apierror.Error{Reason: apierror.UnsupportedMediaType}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, chain.MaxMessageBytes))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return &apierror.Error{Reason: apierror.RequestTooLarge}
	case err != nil:
		return &apierror.Error{Reason: apierror.RequestMalformed, Cause: errBodyUnreadable}
	case !isShallowJSON(body):
		return &apierror.Error{Reason: apierror.RequestMalformed, Cause: errUndecodable}
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return nil
}

// Why a body was not read, without a word of it.
var (
	errBodyUnreadable = errors.New("the body ended early or came too slowly")
	errUndecodable    = errors.New("the body is not one JSON object, or nests too deep")
)

// headerBytes is the size of a request's headers as HTTP/2 counts it for SETTINGS_MAX_HEADER_LIST_SIZE (RFC 9113
// §6.5.2), so that both transports have the same limit.
func headerBytes(r *http.Request) int {
	n := len(r.Method) + len(r.RequestURI) + len(r.Host)
	for name, values := range r.Header {
		for _, value := range values {
			n += len(name) + len(value) + 32
		}
	}
	return n
}

// isPlainJSON reports whether a body, if there is one, is declared as JSON that is not compressed.
func isPlainJSON(h http.Header) bool {
	if h.Get("Content-Encoding") != "" {
		return false
	}
	declared := h.Values("Content-Type")
	if len(declared) == 0 {
		return true
	}
	mediaType, _, err := mime.ParseMediaType(declared[0])
	return len(declared) == 1 && err == nil && mediaType == "application/json"
}

// maxJSONDepth is how deep a body may nest. A request has no fields, so anything in it is ignored, and 8 is generous.
const maxJSONDepth = 8

// isShallowJSON reports whether body is empty, or JSON that no decoder has to recurse far into.
func isShallowJSON(body []byte) bool {
	depth, values := 0, 0
	for dec := json.NewDecoder(bytes.NewReader(body)); ; {
		token, err := dec.Token()
		if err != nil {
			return errors.Is(err, io.EOF) && depth == 0
		}
		if depth == 0 {
			values++ // a second one would be for another decoder to find
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

// grpcTimeoutHeader carries a REST call's deadline, in gRPC's notation.
const grpcTimeoutHeader = "Grpc-Timeout"

// noTimeout is that of a call that brings no deadline, or one so late that the call chain's own comes before it.
const noTimeout time.Duration = math.MaxInt64

var errTimeoutHeader = errors.New("the Grpc-Timeout header is not up to 8 digits and a unit")

// grpcTimeout reads the values of a Grpc-Timeout header: none, or one with up to 8 digits and a unit (gRPC over HTTP/2,
// section Requests).
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

// requestPeer is who is at the other end of a REST request, in the form in which gRPC has it. X-Forwarded-For is not
// asked: anybody can write that.
func requestPeer(r *http.Request) *peer.Peer {
	p := &peer.Peer{Addr: &net.TCPAddr{}}
	if addr, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		p.Addr = net.TCPAddrFromAddrPort(addr)
	}
	if r.TLS != nil {
		p.AuthInfo = credentials.TLSInfo{
			State:          *r.TLS,
			CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		}
	}
	return p
}
