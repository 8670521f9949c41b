package main

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
)

// The examples of RFC 7396, appendix A.
func TestMergePatch(t *testing.T) {
	for _, tt := range []struct{ target, patch, want string }{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`["a","b"]`, `["c","d"]`, `["c","d"]`},
		{`{"a":"b"}`, `["c"]`, `["c"]`},
		{`{"a":"foo"}`, `null`, `null`},
		{`{"a":"foo"}`, `"bar"`, `"bar"`},
		{`{"e":null}`, `{"a":1}`, `{"e":null,"a":1}`},
		{`[1,2]`, `{"a":"b","c":null}`, `{"a":"b"}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
	} {
		t.Run(tt.target+" + "+tt.patch, func(t *testing.T) {
			got := mergePatch(decode(t, tt.target), decode(t, tt.patch))
			if want := decode(t, tt.want); !reflect.DeepEqual(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

// sources is a small set of the inputs of a document.
type sources struct {
	plugin   string
	add      topics
	failures []failure
	reasons  []reason
}

func (s sources) describe() ([]byte, error) {
	return describe([]byte(s.plugin), s.add, s.failures, s.reasons)
}

func goodSources(t *testing.T) sources {
	t.Helper()
	topic := func(text string) object { return decode(t, text).(object) }
	return sources{
		plugin: `{"paths":{"/t":{"post":{"operationId":"Service_GetT","responses":{"200":{"description":"plugin"}}},"delete":{"responses":{"200":{"description":"plugin"}}}}},
			"components":{"schemas":{"forsta.T":{"properties":{"f":{}}}}}}`,
		add: topics{
			document: []object{
				topic(`{"components":{"schemas":{"google.rpc.Status":{},"forsta.T":{"properties":{"f":{"minLength":1}}}},"headers":{
					"AccessControlAllowOrigin":{},"AccessControlExposeHeaders":{},"Vary":{},
					"RequestId":{},"CacheControl":{},"ContentTypeOptions":{},"RetryAfter":{},"Own":{}}}}`),
				topic(`{"paths":{"/t":{"parameters":[],
					"post":{"responses":{"200":null,"201":{"description":"<t>"},"503":{"headers":{"Own":{"$ref":"#/components/headers/Own"}}}}},
					"delete":{}}}}`),
			},
			errors: topic(`{"400":{"description":"bad"},"503":{"description":"later"}}`),
		},
		failures: []failure{
			{Reason: "BAD", Status: 400, Body: "b"},
			{Reason: "LATER", Status: 503, Waits: true, Body: "l"},
			{Reason: "LATER", Status: 503, OutcomeUnknown: true, Body: "u"},
		},
		reasons: []reason{{"BAD", "Bad."}, {"LATER", "Later."}},
	}
}

func TestDescribe(t *testing.T) {
	doc, err := goodSources(t).describe()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(doc), `\u003c`) {
		t.Errorf("escapes HTML: %s", doc)
	}
	document := decode(t, string(doc)).(object)
	common := string(encode(t, commonHeaders()))
	common = common[1 : len(common)-1]
	for _, tt := range []struct {
		verb, status string
		want         string // of the response
	}{
		{"post", "201", `{"description":"<t>","headers":{` + common + `}}`},
		{"post", "400", `{"description":"bad\n\nReasons: ` + "`BAD`" + `.","headers":{` + common + `},
			"content":{"application/json":{"schema":{"$ref":"#/components/schemas/google.rpc.Status"},
				"examples":{"BAD":{"$ref":"#/components/examples/BAD"}}}}}`},
		{"post", "503", `{"description":"later\n\nReasons: ` + "`LATER`" + `.","headers":{` + common + `,
			"Own":{"$ref":"#/components/headers/Own"},"Retry-After":{"$ref":"#/components/headers/RetryAfter"}},
			"content":{"application/json":{"schema":{"$ref":"#/components/schemas/google.rpc.Status"},
				"examples":{"LATER":{"$ref":"#/components/examples/LATER"}}}}}`},
		{"delete", "503", `{"description":` + string(encode(t, "later"+explanation([]failure{{Reason: "LATER", OutcomeUnknown: true}}))) + `,"headers":{
			` + common + `,"Retry-After":{"$ref":"#/components/headers/RetryAfter"}},
			"content":{"application/json":{"schema":{"$ref":"#/components/schemas/google.rpc.Status"},
				"examples":{"LATER":{"$ref":"#/components/examples/LATER"},"LATER-outcome-unknown":{"$ref":"#/components/examples/LATER-outcome-unknown"}}}}}`},
	} {
		got := in(document, "paths", "/t", tt.verb, "responses")[tt.status]
		if want := decode(t, tt.want); !reflect.DeepEqual(got, want) {
			t.Errorf("%s %s: got %s\nwant %s", tt.verb, tt.status, encode(t, got), encode(t, want))
		}
	}
	if got := in(document, "paths", "/t", "post", "responses")["200"]; got != nil {
		t.Errorf("a response that a topic removes is still there: %v", got)
	}
	if got := in(document, "paths", "/t", "post")["operationId"]; got != "getT" {
		t.Errorf("operationId %v, want getT", got)
	}
	schema := in(document, "components", "schemas", reasonEnum)
	if want := []any{"BAD", "LATER"}; !reflect.DeepEqual(schema["enum"], want) || !strings.Contains(schema["description"].(string), "- `LATER`: Later.") {
		t.Errorf("the schema of reasons is %v", schema)
	}
}

// TestDrift checks that sources that contradict each other are refused.
func TestDrift(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  func(*sources)
		wantErr string
	}{
		{"operation missing in the topics", func(s *sources) { delete(in(s.add.document[1], "paths", "/t"), "delete") },
			`tools/generate/openapi/operations.yaml has the operations ["POST /t"], the proto has ["DELETE /t" "POST /t"]`},
		{"operation missing in the proto", func(s *sources) { in(s.add.document[1], "paths", "/t")["put"] = object{} },
			`tools/generate/openapi/operations.yaml has the operations ["DELETE /t" "POST /t" "PUT /t"], the proto has ["DELETE /t" "POST /t"]`},
		{"message missing in the proto", func(s *sources) { in(s.add.document[0], "components", "schemas")["forsta.U"] = object{} },
			`schemas.yaml has forsta.U, the proto does not`},
		{"field missing in the proto", func(s *sources) {
			in(s.add.document[0], "components", "schemas", "forsta.T", "properties")["g"] = object{}
		},
			`schemas.yaml has g of forsta.T, the proto does not`},
		{"reason missing in the code", func(s *sources) { s.reasons = append(s.reasons, reason{name: "NEW"}) },
			`internal/apierror/apierror.go has the reasons ["BAD" "LATER"], error_reason.proto has ["BAD" "LATER" "NEW"]`},
		{"reason missing in the proto", func(s *sources) { s.failures = append(s.failures, failure{Reason: "NEW", Status: 400}) },
			`internal/apierror/apierror.go has the reasons ["BAD" "LATER" "NEW"], error_reason.proto has ["BAD" "LATER"]`},
		{"status missing in errors.yaml", func(s *sources) { s.failures[0].Status = 401 },
			`tools/generate/openapi/errors.yaml has the statuses ["400" "503"], internal/apierror/apierror.go has ["401" "503"]`},
		{"response without a description", func(s *sources) { in(s.add.document[1], "paths", "/t", "post", "responses")["402"] = object{} },
			`POST /t has a response 402 without a description`},
		{"missing header", func(s *sources) { delete(in(s.add.document[0], "components", "headers"), "Own") },
			`nothing at $ref "#/components/headers/Own"`},
		{"reference to another document", func(s *sources) { s.add.document[0]["info"] = object{"$ref": "https://example.com/"} },
			`nothing at $ref "https://example.com/"`},
		{"invalid JSON", func(s *sources) { s.plugin = "{" }, "unexpected end of JSON input"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := goodSources(t)
			tt.change(&s)
			if _, err := s.describe(); err == nil || !strings.Contains(err.Error(), tt.wantErr) {
				t.Errorf("error %v, want %q", err, tt.wantErr)
			}
		})
	}
}

// TestSources checks that the code, the proto and the topics of this repository match.
func TestSources(t *testing.T) {
	failures, err := readFailures(t.Context(), "../..", os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	reasons, err := readReasons(t.Context(), "../..", os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	add, err := readTopics()
	if err != nil {
		t.Fatal(err)
	}
	if err := checkFailures(failures, reasons, add.errors); err != nil {
		t.Error(err)
	}
	for _, r := range reasons {
		if len(r.comment) < 20 {
			t.Errorf("%s has no useful comment: %q", r.name, r.comment)
		}
	}
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func decode(t *testing.T, s string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return v
}
