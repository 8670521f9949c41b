package server_test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
)

// answer is what a REST caller gets, for the OpenAPI document to be held against.
type answer struct {
	verb, path string
	status     int
	header     http.Header
	body       string
}

// String leaves out the body of a success, which is a secret.
func (a answer) String() string {
	if a.status < 400 {
		return fmt.Sprintf("%d %v, %d bytes", a.status, a.header, len(a.body))
	}
	return fmt.Sprintf("%d %v\n%s", a.status, a.header, a.body)
}

// ofHTTP are the headers of an answer that HTTP itself has, and that no OpenAPI document describes.
var ofHTTP = []string{"Connection", "Content-Length", "Content-Type", "Date", "Transfer-Encoding"}

// ofCORS are the headers of answers for pages of other origins. All answers have them, where they are switched on.
var ofCORS = []string{"Access-Control-Allow-Origin", "Access-Control-Expose-Headers", "Vary"}

// openapiFile is the OpenAPI document. The binary has it compressed.
const openapiFile = "../gen/openapi/ephemeral_token.openapi.json"

var openapiDocument = sync.OnceValues(func() (*openapi3.T, error) {
	loader := openapi3.NewLoader()
	doc, err := loader.LoadFromFile(openapiFile)
	if err != nil {
		return nil, err
	}
	return doc, doc.Validate(loader.Context)
})

func mustOpenAPI(t testing.TB) *openapi3.T {
	t.Helper()
	doc, err := openapiDocument()
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// servicePath is the one path that the document has.
const servicePath = "/v1/ephemeral-token"

// checkDocumented fails the test if the document does not have the answer just so: status, every header, content type and body,
// and of an error, its reason. It returns the parts of the document that the answer is an instance of. An answer to another verb
// than the document has, or for another path, is in both operations.
func (a answer) checkDocumented(t testing.TB) []string {
	t.Helper()
	item := mustOpenAPI(t).Paths.Value(servicePath)
	var parts []string
	for verb, operation := range item.Operations() {
		if a.verb != verb && item.GetOperation(a.verb) != nil {
			continue
		}
		found, err := a.documentedAs(t, verb, operation)
		if err != nil {
			t.Errorf("the OpenAPI document does not have this answer to %s %s: %v\n%s", a.verb, a.path, err, a)
		}
		parts = append(parts, found...)
	}
	return parts
}

func (a answer) documentedAs(t testing.TB, verb string, operation *openapi3.Operation) (parts []string, err error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), verb, "http://tokend.test"+servicePath, http.NoBody)
	if err != nil {
		return nil, err
	}
	doc := mustOpenAPI(t)
	err = openapi3filter.ValidateResponse(t.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{
			Request: request,
			Route:   &routers.Route{Spec: doc, Path: servicePath, PathItem: doc.Paths.Value(servicePath), Method: verb, Operation: operation},
		},
		Status: a.status, Header: a.header, Body: io.NopCloser(strings.NewReader(a.body)),
		Options: &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true},
	})
	if err != nil {
		return nil, err
	}
	response := operation.Responses.Status(a.status).Value
	name := fmt.Sprintf("%s %d", verb, a.status)
	headers := map[string]bool{}
	for header := range response.Headers {
		headers[http.CanonicalHeaderKey(header)] = true
	}
	for header := range a.header {
		if headers[header] {
			parts = append(parts, name+" header "+header)
		} else if !slices.Contains(ofHTTP, header) {
			return nil, fmt.Errorf("header %s is not in it", header)
		}
	}
	media, err := a.mediaType(response.Content)
	if err != nil || media == "" {
		return append(parts, name), err
	}
	parts = append(parts, name+" "+media)
	if media != "application/json" {
		return parts, nil
	}
	example, err := a.example(response.Content[media])
	if example != "" {
		parts = append(parts, name+" "+media+" "+example)
	}
	return parts, err
}

// mediaType is that of the answer among those of its content, "" if it is to have none.
func (a answer) mediaType(content openapi3.Content) (string, error) {
	declared, _, _ := strings.Cut(a.header.Get("Content-Type"), ";")
	switch {
	case len(content) == 0 && (declared != "" || a.body != ""):
		return "", fmt.Errorf("it has no body, the answer has one of %q", declared)
	case len(content) > 0 && content[declared] == nil:
		return "", fmt.Errorf("it has no content of type %q", declared)
	}
	return declared, nil
}

// example is the name of the error that the answer is. But for RetryInfo's delay the two are the same.
func (a answer) example(media *openapi3.MediaType) (string, error) {
	var got map[string]any
	if err := json.Unmarshal([]byte(a.body), &got); err != nil {
		return "", err
	}
	if len(media.Examples) == 0 { // a success
		for property := range got {
			if media.Schema.Value.Properties[property] == nil {
				return "", fmt.Errorf("property %s is not in it", property)
			}
		}
		return "", nil
	}
	withoutDelay(got)
	for name, example := range media.Examples {
		want := cloneJSON(example.Value.Value)
		withoutDelay(want)
		if reflect.DeepEqual(want, any(got)) {
			return name, nil
		}
	}
	return "", fmt.Errorf("it has no such error, but %v", slices.Sorted(maps.Keys(media.Examples)))
}

func cloneJSON(value any) any {
	data, err := json.Marshal(value)
	if err != nil {
		panic(err) // cannot happen: it has been read as JSON
	}
	var clone any
	if err := json.Unmarshal(data, &clone); err != nil {
		panic(err)
	}
	return clone
}

// withoutDelay has every RetryInfo of an error say the same.
func withoutDelay(status any) {
	object, _ := status.(map[string]any)
	details, _ := object["details"].([]any)
	for _, detail := range details {
		if detail, _ := detail.(map[string]any); detail["retryDelay"] != nil {
			detail["retryDelay"] = "some"
		}
	}
}

// documentedParts is all that checkDocumented can return, but for ofCORS.
func documentedParts(doc *openapi3.T) []string {
	var parts []string
	for verb, operation := range doc.Paths.Value(servicePath).Operations() {
		for status, response := range operation.Responses.Map() {
			name := verb + " " + status
			for header := range response.Value.Headers {
				if slices.Contains(ofCORS, header) {
					continue
				}
				parts = append(parts, name+" header "+http.CanonicalHeaderKey(header))
			}
			if len(response.Value.Content) == 0 {
				parts = append(parts, name)
			}
			for media, content := range response.Value.Content {
				parts = append(parts, name+" "+media)
				for example := range content.Examples {
					parts = append(parts, name+" "+media+" "+example)
				}
			}
		}
	}
	slices.Sort(parts)
	return parts
}

// answer is what the document is held against of a call over REST.
func (o outcome) answer() answer {
	header := http.Header{}
	for name, values := range o.Header {
		header[http.CanonicalHeaderKey(name)] = values
	}
	return answer{o.Verb, o.Path, o.HTTP, header, o.Body}
}

// TestUndocumented: what is not in the document is noticed.
func TestUndocumented(t *testing.T) {
	good := func() answer {
		return answer{http.MethodPost, servicePath, http.StatusCreated, http.Header{
			"X-Request-Id": {"x"}, "Cache-Control": {"no-store"}, "X-Content-Type-Options": {"nosniff"},
			"Cache-Status": {"tokend; fwd=miss"}, "Content-Type": {"application/json"}, "Content-Length": {"15"},
		}, `{"token":"abc"}`}
	}
	missing := func() answer {
		a := good()
		a.status, a.header["Www-Authenticate"] = http.StatusUnauthorized, []string{"JWT"}
		examples := mustOpenAPI(t).Components.Examples
		body, err := json.Marshal(examples["CREDENTIAL_MISSING"].Value.Value)
		if err != nil {
			t.Fatal(err)
		}
		a.body = string(body)
		return a
	}
	for name, tc := range map[string]struct {
		of     func() answer
		change func(*answer)
	}{
		"status":            {good, func(a *answer) { a.status = http.StatusOK }},
		"header":            {good, func(a *answer) { a.header["Server"] = []string{"x"} }},
		"no header":         {good, func(a *answer) { delete(a.header, "X-Request-Id") }},
		"header's value":    {good, func(a *answer) { a.header["Cache-Status"] = []string{"hit"} }},
		"content type":      {good, func(a *answer) { a.header["Content-Type"] = []string{"text/html"} }},
		"body's type":       {good, func(a *answer) { a.body = `{"token":1}` }},
		"property":          {good, func(a *answer) { a.body = `{"token":"abc","more":1}` }},
		"no property":       {good, func(a *answer) { a.body = `{}` }},
		"no body":           {good, func(a *answer) { a.body = "" }},
		"body of a delete":  {good, func(a *answer) { a.verb, a.status = http.MethodDelete, http.StatusNoContent }},
		"reason":            {missing, func(a *answer) { a.body = strings.ReplaceAll(a.body, "CREDENTIAL_MISSING", "OTHER") }},
		"reason's status":   {missing, func(a *answer) { a.status = http.StatusForbidden }},
		"message":           {missing, func(a *answer) { a.body = strings.Replace(a.body, "no credential", "x", 1) }},
		"challenge":         {missing, func(a *answer) { a.header["Www-Authenticate"] = []string{"Basic"} }},
		"no challenge":      {missing, func(a *answer) { delete(a.header, "Www-Authenticate") }},
		"Retry-After":       {missing, func(a *answer) { a.header["Retry-After"] = []string{"1"} }},
		"reason of another": {missing, func(a *answer) { a.body = strings.ReplaceAll(a.body, "CREDENTIAL_MISSING", "CREDENTIAL_REJECTED") }},
	} {
		t.Run(name, func(t *testing.T) {
			a := tc.of()
			if parts := a.checkDocumented(t); len(parts) == 0 {
				t.Error("it is no instance of anything to begin with")
			}
			tc.change(&a)
			operation := mustOpenAPI(t).Paths.Value(servicePath).GetOperation(a.verb)
			if _, err := a.documentedAs(t, a.verb, operation); err == nil {
				t.Errorf("%s is taken", a)
			}
		})
	}
}
