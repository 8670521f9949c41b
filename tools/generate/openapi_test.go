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

// sources are what a document is made of, in small.
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
		plugin: `{"paths":{"/t":{"post":{"responses":{"200":{"description":"plugin"}}},"delete":{"responses":{"200":{"description":"plugin"}}}}},
			"components":{"schemas":{"forsta.T":{"properties":{"f":{}}}}}}`,
		add: topics{
			document: []object{
				topic(`{"components":{"schemas":{"google.rpc.Status":{},"forsta.T":{"properties":{"f":{"minLength":1}}}},"headers":{
					"AccessControlAllowOrigin":{},"AccessControlExposeHeaders":{},"Vary":{},
					"RequestId":{},"CacheControl":{},"ContentTypeOptions":{},"RetryAfter":{},"RetryAfterIfSafe":{},"Own":{}}}}`),
				topic(`{"paths":{"/t":{"parameters":[],
					"post":{"responses":{"200":null,"201":{"description":"<t>"},"503":{"headers":{"Own":{"$ref":"#/components/headers/Own"}}}}},
					"delete":{}}}}`),
			},
			errors: topic(`{"400":{"description":"bad"},"503":{"description":"later"}}`),
			http:   topic(`{"400":{"content":{"text/plain":{}}},"505":{"description":"version"}}`),
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
			"content":{"text/plain":{},"application/json":{"schema":{"$ref":"#/components/schemas/google.rpc.Status"},
				"examples":{"BAD":{"$ref":"#/components/examples/BAD"}}}}}`},
		{"post", "503", `{"description":"later\n\nReasons: ` + "`LATER`" + `.","headers":{` + common + `,
			"Own":{"$ref":"#/components/headers/Own"},"Retry-After":{"$ref":"#/components/headers/RetryAfter"}},
			"content":{"application/json":{"schema":{"$ref":"#/components/schemas/google.rpc.Status"},
				"examples":{"LATER":{"$ref":"#/components/examples/LATER"}}}}}`},
		{"delete", "503", `{"description":` + string(encode(t, "later"+explanation([]failure{{Reason: "LATER", OutcomeUnknown: true}}))) + `,"headers":{
			` + common + `,"Retry-After":{"$ref":"#/components/headers/RetryAfterIfSafe"}},
			"content":{"application/json":{"schema":{"$ref":"#/components/schemas/google.rpc.Status"},
				"examples":{"LATER":{"$ref":"#/components/examples/LATER"},"LATER-outcome-unknown":{"$ref":"#/components/examples/LATER-outcome-unknown"}}}}}`},
		{"delete", "505", `{"description":"version"}`},
	} {
		got := in(document, "paths", "/t", tt.verb, "responses")[tt.status]
		if want := decode(t, tt.want); !reflect.DeepEqual(got, want) {
			t.Errorf("%s %s: got %s\nwant %s", tt.verb, tt.status, encode(t, got), encode(t, want))
		}
	}
	if got := in(document, "paths", "/t", "post", "responses")["200"]; got != nil {
		t.Errorf("what a topic takes away is still there: %v", got)
	}
	schema := in(document, "components", "schemas", reasonEnum)
	if want := []any{"BAD", "LATER"}; !reflect.DeepEqual(schema["enum"], want) || !strings.Contains(schema["description"].(string), "- `LATER`: Later.") {
		t.Errorf("the schema of reasons is %v", schema)
	}
}

// TestDrift: sources that do not go together give no document.
func TestDrift(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  func(*sources)
		wantErr string
	}{
		{"an operation that the topics miss", func(s *sources) { delete(in(s.add.document[1], "paths", "/t"), "delete") },
			`operations.yaml covers the operations ["POST /t"], the proto has ["DELETE /t" "POST /t"]`},
		{"an operation of the topics' own", func(s *sources) { in(s.add.document[1], "paths", "/t")["put"] = object{} },
			`operations.yaml covers the operations ["DELETE /t" "POST /t" "PUT /t"], the proto has ["DELETE /t" "POST /t"]`},
		{"a message that the proto lacks", func(s *sources) { in(s.add.document[0], "components", "schemas")["forsta.U"] = object{} },
			`schemas.yaml has forsta.U, the proto does not`},
		{"a field that the proto lacks", func(s *sources) {
			in(s.add.document[0], "components", "schemas", "forsta.T", "properties")["g"] = object{}
		},
			`schemas.yaml has g of forsta.T, the proto does not`},
		{"a reason of the proto's own", func(s *sources) { s.reasons = append(s.reasons, reason{name: "NEW"}) },
			`internal/apierror has the reasons ["BAD" "LATER"], the proto has ["BAD" "LATER" "NEW"]`},
		{"a reason of the code's own", func(s *sources) { s.failures = append(s.failures, failure{Reason: "NEW", Status: 400}) },
			`internal/apierror has the reasons ["BAD" "LATER" "NEW"], the proto has ["BAD" "LATER"]`},
		{"a status that errors.yaml misses", func(s *sources) { s.failures[0].Status = 401 },
			`errors.yaml covers the statuses ["400" "503"], internal/apierror has ["401" "503"]`},
		{"a response that only operations.yaml has", func(s *sources) { in(s.add.document[1], "paths", "/t", "post", "responses")["402"] = object{} },
			`POST /t has a response 402 without a description`},
		{"a response that http.yaml does not describe", func(s *sources) { s.add.http["417"] = object{} },
			`DELETE /t has a response 417 without a description`},
		{"a header that is not there", func(s *sources) { delete(in(s.add.document[0], "components", "headers"), "Own") },
			`nothing at $ref "#/components/headers/Own"`},
		{"another document", func(s *sources) { s.add.document[0]["info"] = object{"$ref": "https://example.com/"} },
			`nothing at $ref "https://example.com/"`},
		{"no JSON", func(s *sources) { s.plugin = "{" }, "unexpected end of JSON input"},
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

// TestSources: the code, the proto and the topics of this repository go together.
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
			t.Errorf("%s is not explained: %q", r.name, r.comment)
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
