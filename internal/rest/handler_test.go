package rest

import (
	"encoding/json"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
)

func FuzzGRPCTimeout(f *testing.F) {
	for _, seed := range []string{"1S", "0n", "99999999H", "-1S", "", "1", "12345678m"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if d, err := grpcTimeout([]string{value}); d < 0 || err != nil && d != noTimeout {
			t.Errorf("%q: %v, %v", value, d, err)
		}
	})
}

// TestDocumentedParameters checks that the OpenAPI document has exactly the headers that a call
// reads. Those with a credential are in its security schemes.
func TestDocumentedParameters(t *testing.T) {
	type parameter struct{ Name string }
	var doc struct {
		Components struct{ Parameters map[string]parameter }
		Paths      map[string]map[string]json.RawMessage
	}
	readOpenAPI(t, &doc)
	documented := map[string]bool{}
	for _, p := range doc.Components.Parameters {
		documented[strings.ToLower(p.Name)] = true
	}
	for _, item := range doc.Paths {
		for verb, data := range item {
			if verb == "parameters" {
				continue
			}
			var operation struct{ Parameters []parameter }
			if err := json.Unmarshal(data, &operation); err != nil {
				t.Fatal(err)
			}
			for _, p := range operation.Parameters {
				documented[strings.ToLower(p.Name)] = true
			}
		}
	}
	taken := []string{strings.ToLower(grpcTimeoutHeader)}
	for _, h := range headersIn {
		if h.name != auth.Header && h.name != auth.SecondHeader {
			taken = append(taken, h.name)
		}
	}
	slices.Sort(taken)
	if diff := cmp.Diff(taken, slices.Sorted(maps.Keys(documented))); diff != "" {
		t.Errorf("headers (-taken +documented):\n%s", diff)
	}
}

// readOpenAPI fills doc with the OpenAPI document.
func readOpenAPI(t *testing.T, doc any) {
	t.Helper()
	data, err := os.ReadFile("../../gen/openapi/ephemeral_token.openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, doc); err != nil {
		t.Fatal(err)
	}
}

// TestDocumentedTimeout checks that the document's pattern accepts what the parser accepts.
func TestDocumentedTimeout(t *testing.T) {
	var doc struct {
		Components struct {
			Parameters struct {
				GrpcTimeout struct{ Schema struct{ Pattern string } }
			}
		}
	}
	readOpenAPI(t, &doc)
	pattern := regexp.MustCompile(doc.Components.Parameters.GrpcTimeout.Schema.Pattern)
	for _, value := range []string{"1S", "0n", "99999999H", "7m", "7u", "12345678M", "", "1", "S", "soon", "-1S", "+5S", "1.5S", "5s", "123456789S", "5S ", " 5S", "5 S"} {
		if _, err := grpcTimeout([]string{value}); (err == nil) != pattern.MatchString(value) {
			t.Errorf("%q: the parser returns %v, the pattern matches: %v", value, err, pattern.MatchString(value))
		}
	}
}
