package server_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

// TestUndocumented checks that CheckDocumented rejects responses that are not documented.
func TestUndocumented(t *testing.T) {
	t.Parallel()
	good := func() testutil.Answer {
		return testutil.Answer{Verb: http.MethodPost, Path: testutil.ServicePath, Status: http.StatusCreated, Header: http.Header{
			"X-Request-Id": {"x"}, "Cache-Control": {"no-store"}, "X-Content-Type-Options": {"nosniff"},
			"Cache-Status": {"tokend; fwd=miss"}, "Content-Type": {"application/json"}, "Content-Length": {"15"},
		}, Body: `{"token":"abc"}`}
	}
	missing := func() testutil.Answer {
		a := good()
		a.Status, a.Header["Www-Authenticate"] = http.StatusUnauthorized, []string{"JWT"}
		examples := testutil.OpenAPI(t).Components.Examples
		body, err := json.Marshal(examples["CREDENTIAL_MISSING"].Value.Value)
		if err != nil {
			t.Fatal(err)
		}
		a.Body = string(body)
		return a
	}
	for name, tc := range map[string]struct {
		of     func() testutil.Answer
		change func(*testutil.Answer)
	}{
		"status":           {good, func(a *testutil.Answer) { a.Status = http.StatusOK }},
		"header":           {good, func(a *testutil.Answer) { a.Header["Server"] = []string{"x"} }},
		"no header":        {good, func(a *testutil.Answer) { delete(a.Header, "X-Request-Id") }},
		"header's value":   {good, func(a *testutil.Answer) { a.Header["Cache-Status"] = []string{"hit"} }},
		"content type":     {good, func(a *testutil.Answer) { a.Header["Content-Type"] = []string{"text/html"} }},
		"body's type":      {good, func(a *testutil.Answer) { a.Body = `{"token":1}` }},
		"property":         {good, func(a *testutil.Answer) { a.Body = `{"token":"abc","more":1}` }},
		"no property":      {good, func(a *testutil.Answer) { a.Body = `{}` }},
		"no body":          {good, func(a *testutil.Answer) { a.Body = "" }},
		"body of a delete": {good, func(a *testutil.Answer) { a.Verb, a.Status = http.MethodDelete, http.StatusNoContent }},
		"reason":           {missing, func(a *testutil.Answer) { a.Body = strings.ReplaceAll(a.Body, "CREDENTIAL_MISSING", "OTHER") }},
		"reason's status":  {missing, func(a *testutil.Answer) { a.Status = http.StatusForbidden }},
		"challenge":        {missing, func(a *testutil.Answer) { a.Header["Www-Authenticate"] = []string{"Basic"} }},
		"no challenge":     {missing, func(a *testutil.Answer) { delete(a.Header, "Www-Authenticate") }},
		"Retry-After":      {missing, func(a *testutil.Answer) { a.Header["Retry-After"] = []string{"1"} }},
	} {
		t.Run(name, func(t *testing.T) {
			a := tc.of()
			if parts := a.CheckDocumented(t); len(parts) == 0 {
				t.Error("the unchanged response is not documented")
			}
			tc.change(&a)
			operation := testutil.OpenAPI(t).Paths.Value(testutil.ServicePath).GetOperation(a.Verb)
			if _, err := a.DocumentedAs(t, a.Verb, operation); err == nil {
				t.Errorf("%s is accepted", a)
			}
		})
	}
}
