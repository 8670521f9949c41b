package atlas

import (
	"strings"
	"testing"
	"time"
)

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, time.November, 23, 9, 30, 0, 0, time.UTC)
	for _, tc := range []struct {
		value string
		want  time.Duration // 0: not a Retry-After
	}{
		{"7", 7 * time.Second},
		{"007", 7 * time.Second},
		{"0", time.Second},
		{"1", time.Second},
		{"300", 5 * time.Minute},
		{"301", 5 * time.Minute},
		{"9223372037", 5 * time.Minute}, // in nanoseconds, over an int64
		{strings.Repeat("9", 400), 5 * time.Minute},

		{"Mon, 23 Nov 2026 09:30:42 GMT", 42 * time.Second},
		{"Monday, 23-Nov-26 09:30:42 GMT", 42 * time.Second},
		{"Mon Nov 23 09:30:42 2026", 42 * time.Second},
		{"Tue Dec  1 09:30:42 2026", 5 * time.Minute},
		{"Mon, 23 Nov 2026 09:30:00 GMT", time.Second},
		{"Mon, 23 Nov 2026 09:29:59 GMT", time.Second},
		{"Thu, 01 Jan 1970 00:00:00 GMT", time.Second},
		{"Fri, 31 Dec 9999 23:59:59 GMT", 5 * time.Minute},
		{"", 0},
		{" ", 0},
		{"soon", 0},
		{"-1", 0},
		{"+1", 0},
		{"1.5", 0},
		{"1e2", 0},
		{"0x10", 0},
		{"1 2", 0},
		{"7, 7", 0},
		{"٧", 0}, // a digit, but not HTTP's
		{"Mon, 23 Nov 2026 09:30:42", 0},
		{"Mon, 23 Nov 2026 09:30:42 PST", 0},
		{"Mon, 32 Nov 2026 09:30:42 GMT", 0},
		{"2026-11-23T09:30:42Z", 0},
	} {
		if got := parseRetryAfter(tc.value, now); got != tc.want {
			t.Errorf("parseRetryAfter(%q) = %v, want %v", tc.value, got, tc.want)
		}
	}
}

func FuzzParseRetryAfter(f *testing.F) {
	for _, s := range []string{"", "0", "7", "300", "99999999999999999999", "-1", "Mon, 23 Nov 2026 09:30:42 GMT",
		"Monday, 23-Nov-26 09:30:42 GMT", "Mon Nov 23 09:30:42 2026", "Thursday, 29-Feb-00 00:00:00 GMT"} {
		f.Add(s, int64(1795426200))
	}
	f.Fuzz(func(t *testing.T, value string, unix int64) {
		now := time.Unix(unix%253402300800, 0) // within the years that HTTP can write
		if got := parseRetryAfter(value, now); got != 0 && (got < minRetryAfter || got > maxRetryAfter) {
			t.Errorf("%v is out of range", got)
		}
	})
}
