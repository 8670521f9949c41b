package rest

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/rs/cors"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/call"
)

// preflightAge is how long a browser may remember what it has been allowed: what Chromium takes at most.
const preflightAge = 2 * time.Hour

// allowOrigins lets pages of these origins call the routes from a browser, by CORS (https://fetch.spec.whatwg.org/#http-cors-protocol).
// It answers preflights by itself: they are no calls, and bring no credential. Access-Control-Allow-Credentials is never sent: a caller
// says who he is in Authorization, which a page has to know, and never by what a browser adds of its own.
func allowOrigins(origins []string, known routes, next http.Handler) http.Handler {
	if len(origins) == 0 {
		return next // to the library none would be all
	}
	var methods []string
	for _, verbs := range known {
		methods = append(methods, verbs...)
	}
	slices.Sort(methods)
	var exposed []string
	for _, h := range headersOut {
		exposed = append(exposed, h.name)
	}
	return cors.New(cors.Options{
		AllowedOrigins: origins,
		AllowedMethods: slices.Compact(methods),
		AllowedHeaders: []string{auth.Header, "content-type", call.RequestIDHeader, "traceparent", "tracestate", "cache-control", grpcTimeoutHeader},
		ExposedHeaders: append(exposed, "retry-after", apierror.ChallengeHeader, "allow"),
		MaxAge:         int(preflightAge.Seconds()),
	}).Handler(next)
}

// byOrigin knows the requests that a page of another origin has its browser make.
var byOrigin http.CrossOriginProtection

// checkOrigin refuses what a page of another origin has a browser do with the client certificate that the browser holds: it could not
// read the answer, and a delete needs none. A call with an Authorization header is that of somebody who knows what to write there,
// and of a page that the browser has asked us about.
func checkOrigin(r *http.Request) error {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 || r.Header[authorization] != nil {
		return nil
	}
	return byOrigin.Check(r)
}

// authorization is auth.Header as net/http has it.
var authorization = http.CanonicalHeaderKey(auth.Header)

// ValidateOrigin reports an origin that is not written as browsers send it, and one that any page could have.
func ValidateOrigin(origin string) error {
	wrong := func(what string) error {
		return fmt.Errorf("%q is not an origin that can be allowed: %s", origin, what)
	}
	switch {
	case strings.Contains(origin, "*"):
		return wrong("there are no wildcards; name each origin")
	case origin == "null":
		return wrong("every sandboxed page and every local file has it")
	}
	u, err := url.Parse(origin)
	if err != nil || u.Host == "" || strings.ContainsFunc(u.Host, func(r rune) bool { return r > unicode.MaxASCII }) {
		return wrong("give scheme and host, such as https://app.example.com, a name beyond ASCII as xn--…")
	}
	switch {
	case u.Scheme == "http" && !isLoopback(u.Hostname()):
		return wrong("anybody on the way can change a page that comes over http; give https, or http for localhost")
	case u.Scheme != "http" && u.Scheme != "https":
		return wrong("give one with https")
	}
	if sent := asSent(u); origin != sent {
		return wrong("browsers send " + sent)
	}
	return nil
}

// isLoopback reports whether browsers take a host for this machine.
func isLoopback(host string) bool {
	host = strings.ToLower(host)
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback() || host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// asSent is u's origin in the one form in which browsers send it: in lower case, without the scheme's own port.
func asSent(u *url.URL) string {
	host, port := strings.ToLower(u.Hostname()), u.Port()
	if ip, err := netip.ParseAddr(host); err == nil && ip.Is6() {
		host = "[" + ip.String() + "]"
	}
	if port == "" || u.Scheme == "https" && port == "443" || u.Scheme == "http" && port == "80" {
		return u.Scheme + "://" + host
	}
	return u.Scheme + "://" + host + ":" + port
}
