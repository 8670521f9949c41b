package rest

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestMissedRoutes checks the hints for unknown routes, and that they quote nothing of the request.
func TestMissedRoutes(t *testing.T) {
	rt := routes{"/v1/ephemeral-token": {"DELETE", "POST"}, "/docs": {"GET", "HEAD"}}
	for _, tc := range []struct{ verb, path, contentType, log, hint string }{
		{"POST", "/v1/ephemeral-token/", "", "POST near /v1/ephemeral-token, a slash too many", "nearly /v1/ephemeral-token, with a slash too many"},
		{"POST", "//v1//ephemeral-token", "", "POST near /v1/ephemeral-token, a slash too many", "a slash too many"},
		{"DELETE", "/V1/Ephemeral-Token", "", "DELETE near /v1/ephemeral-token, another case", "another case"},
		{"POST", "/ephemeral-token", "", "POST near /v1/ephemeral-token, no /v1", "no /v1"},
		{"POST", "/v1/ephemeral%2Dtoken", "", "POST near /v1/ephemeral-token, percent-encoding", "percent-encoding"},
		{"POST", "/v1/ephemeral-token/planted", "", "POST unknown route", ""},
		{"PLANTED", "/Docs/", "", "unknown verb unknown route", ""},
		{"POST", "/forsta.ephemeraltoken.v1.EphemeralTokenService/planted", "application/json", "POST gRPC or Connect on the REST address", "this address serves REST"},
		{"POST", "/planted", "application/grpc-web+proto", "POST gRPC or Connect on the REST address", "this address serves REST"},
		{"POST", "/planted", "application/connect+json", "POST gRPC or Connect on the REST address", "this address serves REST"},
		{"GET", "/docs", "", "GET /docs", ""},
	} {
		r := httptest.NewRequestWithContext(t.Context(), tc.verb, tc.path, http.NoBody)
		r.Header.Set("Content-Type", tc.contentType)
		log, hint := rt.logName(r), ""
		if log != tc.verb+" "+tc.path {
			hint = rt.missed(r).hint
		}
		if log != tc.log || !strings.Contains(hint, tc.hint) || tc.hint == "" && hint != "" || strings.Contains(strings.ToLower(log+hint), "planted") {
			t.Errorf("%s %s %s: %q, %q; want %q, %q", tc.verb, tc.path, tc.contentType, log, hint, tc.log, tc.hint)
		}
	}
}
