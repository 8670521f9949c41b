package rest

import (
	"net/http"
	"slices"
	"strings"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// routes maps each REST path to its verbs, sorted.
type routes map[string][]string

// newRoutes returns the routes of the google.api.http annotations of the proto, and of the pages.
func newRoutes(pages map[string]http.Handler) routes {
	rt := routes{"/v1/ephemeral-token": {http.MethodDelete, http.MethodPost}}
	for path := range pages {
		rt[path] = []string{http.MethodGet, http.MethodHead}
	}
	return rt
}

// miss describes a request for an unknown route. The texts are fixed, because a path may contain a
// secret.
type miss struct{ log, hint string }

// missed guesses what a request for an unknown route was meant for, for messages only.
func (rt routes) missed(r *http.Request) miss {
	if isRPC(r) {
		return miss{"gRPC or Connect on the REST address", "this address serves REST: gRPC has an address of its own (--grpc-addr), and gRPC-Web and Connect are not served"}
	}
	path := r.URL.Path
	for _, fix := range []struct {
		mistake string
		apply   func(string) string
	}{
		{"percent-encoding", func(path string) string { return path }},
		{"a slash too many", func(path string) string { return "/" + strings.Join(strings.FieldsFunc(path, isSlash), "/") }},
		{"another case", strings.ToLower},
		{"no /v1", func(path string) string { return "/v1" + path }},
	} {
		path = fix.apply(path)
		if verbs, ok := rt[path]; ok && !slices.Contains(verbs, http.MethodGet) { // not a page
			return miss{"near " + path + ", " + fix.mistake, "there is no such route: it is nearly " + path + ", with " + fix.mistake}
		}
	}
	return miss{log: "unknown route"}
}

func isSlash(r rune) bool { return r == '/' }

// isRPC reports whether a request is of gRPC, gRPC-Web or Connect.
func isRPC(r *http.Request) bool {
	mediaType := r.Header.Get("Content-Type")
	return strings.HasPrefix(mediaType, "application/grpc") || strings.HasPrefix(mediaType, "application/connect") ||
		r.Header.Get("Connect-Protocol-Version") != "" ||
		strings.HasPrefix(r.URL.Path, "/"+ephemeraltokenv1.EphemeralTokenService_ServiceDesc.ServiceName+"/")
}

// verbs are those that the log names.
var verbs = []string{http.MethodDelete, http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPatch, http.MethodPost, http.MethodPut}

// logName names a request for the log, without an unknown path or verb: either may contain a
// secret.
func (rt routes) logName(r *http.Request) string {
	verb := "unknown verb"
	if slices.Contains(verbs, r.Method) {
		verb = r.Method
	}
	if _, ok := rt[r.URL.EscapedPath()]; !ok {
		return verb + " " + rt.missed(r).log
	}
	return verb + " " + r.URL.Path
}
