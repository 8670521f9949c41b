package main

import (
	"encoding/json"
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

func TestPatchOpenAPI(t *testing.T) {
	const doc = `{"paths":{"/t":{"post":{"responses":{"200":{"$ref":"#/components/responses/T"}}}}},"components":{"responses":{"T":{}}}}`
	for _, tt := range []struct{ name, patch, want, wantErr string }{
		{
			name:  "moves a response",
			patch: `{"paths":{"/t":{"post":{"responses":{"200":null,"201":{"description":"<t>"}}}}}}`,
			want:  `{"paths":{"/t":{"post":{"responses":{"201":{"description":"<t>"}}}}},"components":{"responses":{"T":{}}}}`,
		},
		{
			name:    "misses an operation",
			patch:   `{"paths":{}}`,
			wantErr: `covers the operations [], the proto has ["POST /t"]`,
		},
		{
			name:    "has an operation of its own",
			patch:   `{"paths":{"/t":{"post":{},"put":{}}}}`,
			wantErr: `covers the operations ["POST /t" "PUT /t"], the proto has ["POST /t"]`,
		},
		{
			name:    "removes what is referred to",
			patch:   `{"paths":{"/t":{"post":{}}},"components":{"responses":{"T":null}}}`,
			wantErr: `nothing at $ref "#/components/responses/T"`,
		},
		{
			name:    "refers to another document",
			patch:   `{"paths":{"/t":{"post":{}}},"info":{"$ref":"https://example.com/"}}`,
			wantErr: `nothing at $ref "https://example.com/"`,
		},
		{
			name:    "is not JSON",
			patch:   `{`,
			wantErr: "unexpected end of JSON input",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := patchOpenAPI([]byte(doc), []byte(tt.patch))
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Fatalf("error %v, want %q", err, tt.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(decode(t, string(got)), decode(t, tt.want)) {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if strings.Contains(string(got), `\u003c`) {
				t.Errorf("escapes HTML: %s", got)
			}
		})
	}
}

func decode(t *testing.T, s string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return v
}
