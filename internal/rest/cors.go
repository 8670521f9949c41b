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

// preflightAge is how long browsers may cache a preflight: Chromium's maximum.
const preflightAge = 2 * time.Hour

// allowOrigins lets pages of these origins call the routes by CORS
// (https://fetch.spec.whatwg.org/#http-cors-protocol). It answers preflights itself: they are not
// calls and have no credential. It never sends Access-Control-Allow-Credentials: pages authenticate
// with Authorization, not with what a browser adds by itself.
func allowOrigins(origins []string, known routes, next http.Handler) http.Handler {
	if len(origins) == 0 {
		return next // the library would allow all
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

// byOrigin detects requests that a page of another origin causes.
var byOrigin http.CrossOriginProtection

// checkOrigin refuses requests that a page of another origin makes with the browser's client
// certificate: it could not read the answer, but a delete needs none. Requests with an
// Authorization header pass: they carry a credential of their own, and needed a preflight.
func checkOrigin(r *http.Request) error {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 || r.Header[authorization] != nil {
		return nil
	}
	return byOrigin.Check(r)
}

// authorization is auth.Header in net/http's form.
var authorization = http.CanonicalHeaderKey(auth.Header)

// ValidateOrigin returns an error for an origin that is not in the form that browsers send, or that
// any page could have.
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
		return wrong("pages over http can be changed on the way; give https, or http for localhost")
	case u.Scheme != "http" && u.Scheme != "https":
		return wrong("give one with https")
	}
	if sent := asSent(u); origin != sent {
		return wrong("browsers send " + sent)
	}
	return nil
}

// isLoopback reports whether browsers treat a host as this machine.
func isLoopback(host string) bool {
	host = strings.ToLower(host)
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback() || host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// asSent returns u's origin in the form that browsers send: in lower case, without the default
// port.
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
