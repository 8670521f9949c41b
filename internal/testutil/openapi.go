package testutil

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

// Answer is a REST response, to be compared with the OpenAPI document.
type Answer struct {
	Verb, Path string
	Status     int
	Header     http.Header
	Body       string
}

// String omits the body of a success, which is a secret.
func (a Answer) String() string {
	if a.Status < 400 {
		return fmt.Sprintf("%d %v, %d bytes", a.Status, a.Header, len(a.Body))
	}
	return fmt.Sprintf("%d %v\n%s", a.Status, a.Header, a.Body)
}

// ofHTTP are HTTP's own headers, which an OpenAPI document does not describe.
var ofHTTP = []string{"Connection", "Content-Length", "Content-Type", "Date", "Transfer-Encoding"}

// OfCORS are the headers for pages of other origins. All responses have them if CORS is on.
var OfCORS = []string{"Access-Control-Allow-Origin", "Access-Control-Expose-Headers", "Vary"}

var openapiDocument = sync.OnceValues(func() (*openapi3.T, error) {
	loader := openapi3.NewLoader()
	doc, err := loader.LoadFromFile(Path("gen/openapi/ephemeral_token.openapi.json"))
	if err != nil {
		return nil, err
	}
	return doc, doc.Validate(loader.Context)
})

// OpenAPI returns the OpenAPI document.
func OpenAPI(t testing.TB) *openapi3.T {
	t.Helper()
	doc, err := openapiDocument()
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// ServicePath is the one path that the document has.
const ServicePath = "/v1/ephemeral-token"

// CheckDocumented fails the test unless the document has the response: its status, every header,
// content type and body, and an error's reason. It returns the parts of the document that the
// response matches. A response to another verb or path must be in both operations.
func (a Answer) CheckDocumented(t testing.TB) []string {
	t.Helper()
	item := OpenAPI(t).Paths.Value(ServicePath)
	var parts []string
	for verb, operation := range item.Operations() {
		if a.Verb != verb && item.GetOperation(a.Verb) != nil {
			continue
		}
		found, err := a.documentedAs(t, verb, operation)
		if err != nil {
			t.Errorf("the OpenAPI document does not have this response to %s %s: %v\n%s", a.Verb, a.Path, err, a)
		}
		parts = append(parts, found...)
	}
	return parts
}

// documentedAs returns the parts of an operation that the response matches, or an error.
func (a Answer) documentedAs(t testing.TB, verb string, operation *openapi3.Operation) (parts []string, err error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), verb, "http://tokend.test"+ServicePath, http.NoBody)
	if err != nil {
		return nil, err
	}
	doc := OpenAPI(t)
	err = openapi3filter.ValidateResponse(t.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{
			Request: request,
			Route:   &routers.Route{Spec: doc, Path: ServicePath, PathItem: doc.Paths.Value(ServicePath), Method: verb, Operation: operation},
		},
		Status: a.Status, Header: a.Header, Body: io.NopCloser(strings.NewReader(a.Body)),
		Options: &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true},
	})
	if err != nil {
		return nil, err
	}
	response := operation.Responses.Status(a.Status).Value
	name := fmt.Sprintf("%s %d", verb, a.Status)
	headers := map[string]bool{}
	for header := range response.Headers {
		headers[http.CanonicalHeaderKey(header)] = true
	}
	for header := range a.Header {
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

// mediaType returns the documented media type of the response, "" if it has no body.
func (a Answer) mediaType(content openapi3.Content) (string, error) {
	declared, _, _ := strings.Cut(a.Header.Get("Content-Type"), ";")
	switch {
	case len(content) == 0 && (declared != "" || a.Body != ""):
		return "", fmt.Errorf("it has no body, the answer has one of %q", declared)
	case len(content) > 0 && content[declared] == nil:
		return "", fmt.Errorf("it has no content of type %q", declared)
	}
	return declared, nil
}

// example returns the name of the documented error that the response equals, apart from RetryInfo's
// delay and the message.
func (a Answer) example(media *openapi3.MediaType) (string, error) {
	var got map[string]any
	if err := json.Unmarshal([]byte(a.Body), &got); err != nil {
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
		panic(err) // cannot happen: it was read as JSON
	}
	var clone any
	if err := json.Unmarshal(data, &clone); err != nil {
		panic(err)
	}
	return clone
}

// withoutDelay removes an error's message, and the delay of its RetryInfo.
func withoutDelay(status any) {
	object, _ := status.(map[string]any)
	delete(object, "message")
	details, _ := object["details"].([]any)
	for _, detail := range details {
		if detail, _ := detail.(map[string]any); detail["retryDelay"] != nil {
			detail["retryDelay"] = "some"
		}
	}
}

// DocumentedParts returns all that CheckDocumented can return, except OfCORS.
func DocumentedParts(doc *openapi3.T) []string {
	var parts []string
	for verb, operation := range doc.Paths.Value(ServicePath).Operations() {
		for status, response := range operation.Responses.Map() {
			name := verb + " " + status
			for header := range response.Value.Headers {
				if slices.Contains(OfCORS, header) {
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

// Answer returns a REST outcome as a response to compare with the document.
func (o Outcome) Answer() Answer {
	header := http.Header{}
	for name, values := range o.Header {
		header[http.CanonicalHeaderKey(name)] = values
	}
	return Answer{o.Verb, o.Path, o.HTTP, header, o.Body}
}
