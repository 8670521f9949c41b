package atlas

import (
	"net/http"
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
		{" 7\t", 7 * time.Second},
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
		// A year of two digits is the future's up to 50 years from now, then the past's.
		{"Friday, 23-Nov-75 09:30:42 GMT", 5 * time.Minute},
		{"Tuesday, 23-Nov-77 09:30:42 GMT", time.Second},
		{"Monday, 23-Nov-26 09:29:00 GMT", time.Second},

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
		{"Monday, 23-Nov-26 09:30:42 PST", 0},
		{"Mon, 32 Nov 2026 09:30:42 GMT", 0},
		{"2026-11-23T09:30:42Z", 0},
	} {
		got, ok := parseRetryAfter(tc.value, now)
		if got != tc.want || ok != (tc.want != 0) {
			t.Errorf("parseRetryAfter(%q) = %v, %v, want %v", tc.value, got, ok, tc.want)
		}
	}
	// The same in the caller's time zone and late in a century.
	for _, now := range []time.Time{now.In(time.FixedZone("", 11*3600)), time.Date(2098, 12, 31, 23, 59, 30, 0, time.UTC)} {
		value := now.Add(20 * time.Second).UTC().Format("Monday, 02-Jan-06 15:04:05 GMT")
		if got, ok := parseRetryAfter(value, now); got != 20*time.Second || !ok {
			t.Errorf("at %v: parseRetryAfter(%q) = %v, %v", now, value, got, ok)
		}
		if got, ok := parseRetryAfter("Saturday, 01-Jan-00 00:00:30 GMT", time.Date(2099, 12, 31, 23, 59, 50, 0, time.UTC)); got != 40*time.Second || !ok {
			t.Errorf("over the century: %v, %v", got, ok)
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
		got, ok := parseRetryAfter(value, now)
		if !ok {
			if got != 0 {
				t.Errorf("%v and false", got)
			}
			if isDigits(value) {
				t.Error("refused a number")
			}
			return
		}
		if got < time.Second || got > 5*time.Minute {
			t.Errorf("%v is out of range", got)
		}
		if value = strings.Trim(value, " \t"); isDigits(value) {
			return
		}
		// Two of the three dates have one meaning, which net/http finds too.
		at, err := http.ParseTime(value)
		if err != nil {
			t.Fatalf("took %q, which net/http does not: %v", value, err)
		}
		if strings.Contains(value, "-") {
			return
		}
		want := min(max(at.Sub(now), time.Second), 5*time.Minute)
		if got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}
