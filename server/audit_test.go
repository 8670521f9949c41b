package server_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

// TestAuditNoCall checks that a REST request that is refused before it becomes a call is logged
// with its id, and not audited.
func TestAuditNoCall(t *testing.T) {
	t.Parallel()
	s := testutil.StartIdentity(t, "")
	testutil.NotCalled(t, s.Atlas)
	c := s.RESTCaller(t)
	protocols := &http.Protocols{} // an HTTP/2 client would not send the large headers
	protocols.SetHTTP1(true)
	c.Client.Transport = &http.Transport{TLSClientConfig: s.ClientTLS(), Protocols: protocols, DisableKeepAlives: true}
	for name, tc := range map[string]struct {
		verb, path string
		body       io.Reader
		headers    []string
		want       int
	}{
		"route":      {http.MethodPost, "/v1/other", nil, nil, http.StatusNotFound},
		"verb":       {http.MethodPut, "/v1/ephemeral-token", nil, nil, http.StatusMethodNotAllowed},
		"media type": {http.MethodPost, "/v1/ephemeral-token", strings.NewReader("a=b"), []string{"content-type", "text/plain"}, http.StatusUnsupportedMediaType},
		"size":       {http.MethodPost, "/v1/ephemeral-token", strings.NewReader(strings.Repeat(" ", 64<<10+1)), nil, http.StatusRequestEntityTooLarge},
		"headers":    {http.MethodPost, "/v1/ephemeral-token", nil, []string{"x-large", strings.Repeat("x", 16<<10)}, http.StatusRequestHeaderFieldsTooLarge},
		"not JSON":   {http.MethodPost, "/v1/ephemeral-token", strings.NewReader("{"), nil, http.StatusBadRequest},
		"timeout":    {http.MethodPost, "/v1/ephemeral-token", nil, []string{"grpc-timeout", "soon"}, http.StatusBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			got := c.Do(testutil.Context(t), tc.verb, tc.path, tc.body, append(tc.headers, "x-request-id", "r-"+strings.ReplaceAll(name, " ", "-"))...)
			if got.HTTP != tc.want {
				t.Errorf("status %d, want %d", got.HTTP, tc.want)
			}
			testutil.Eventually(t, func() bool { // the line follows the response
				return strings.Contains(s.Log.String(), `"request_id":"`+got.Get("x-request-id")+`"`)
			}, "the request is not in the log")
		})
	}
	if text := s.Audit.String(); text != "" {
		t.Errorf("audited:\n%s", text)
	}
}
