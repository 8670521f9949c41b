package call

import (
	"strings"
	"testing"
)

// TestRequestID: a caller's id is kept if it is fit for a log line and no credential, else there is a new one.
func TestRequestID(t *testing.T) {
	for name, id := range map[string]string{
		"UUID": "0d5bf3a4-5f0c-4e0c-9a55-0d7a9f6d1a9b", "ULID": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "the whole alphabet": "azAZ09-_.:/+=",
		"one character": "a", "the longest": strings.Repeat("x", maxRequestID),
	} {
		if got := chooseRequestID([]string{id}); got != id {
			t.Errorf("%s: %q became %q", name, id, got)
		}
	}
	seen := map[string]bool{}
	for name, values := range map[string][]string{
		"none": nil, "empty": {""}, "two": {"a", "b"}, "too long": {strings.Repeat("x", maxRequestID+1)}, "a JWT": {"eyJh.eyJi.c2ln"},
		"a line feed": {"a\nb"}, "NUL": {"\x00"}, "a space": {"a b"}, "a quote": {`a"`}, "beyond the letters": {"a{"}, "before them": {"`"},
		"beyond the capitals": {"a["}, "before them, too": {"@"}, "beyond the digits": {"1;"}, "not ASCII": {"é"}, "not UTF-8": {"a\xff"},
	} {
		got := chooseRequestID(values)
		if len(got) != 26 || !isRequestID(got) || seen[got] {
			t.Errorf("%s: the id is %q", name, got)
		}
		seen[got] = true
	}
}
