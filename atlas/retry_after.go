package atlas

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// What a Retry-After is clamped to: never so soon that it is no wait, never so long that one wrong header stops a caller
// for a day.
const (
	minRetryAfter = time.Second
	maxRetryAfter = 5 * time.Minute
)

// parseRetryAfter returns how long a Retry-After header asks to wait from now on (RFC 9110 section 10.2.3): a number of
// seconds, or a date in any of HTTP's three forms. It is clamped to within 1 second and 5 minutes; a date that has
// passed means 1 second. It reports false if the value is neither.
func parseRetryAfter(value string, now time.Time) (time.Duration, bool) {
	value = strings.Trim(value, " \t")
	if isDigits(value) {
		seconds, err := strconv.ParseUint(value, 10, 64)
		if err != nil || seconds > uint64(maxRetryAfter/time.Second) { // the error can only be that it is too large
			return maxRetryAfter, true
		}
		return clampRetryAfter(time.Duration(seconds) * time.Second), true
	}
	at, ok := parseHTTPDate(value, now)
	if !ok {
		return 0, false
	}
	return clampRetryAfter(at.Sub(now)), true
}

func clampRetryAfter(d time.Duration) time.Duration {
	return min(max(d, minRetryAfter), maxRetryAfter)
}

func isDigits(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r < '0' || r > '9' })
}

// parseHTTPDate reads the three forms of RFC 9110 section 5.6.7. Not http.ParseTime: for the second form it takes any
// time zone's abbreviation, at an offset of zero, and fixes the century.
func parseHTTPDate(s string, now time.Time) (time.Time, bool) {
	if t, err := time.Parse(http.TimeFormat, s); err == nil {
		return t, true
	}
	if t, err := time.Parse("Monday, 02-Jan-06 15:04:05 GMT", s); err == nil {
		return inCenturyOf(t, now), true
	}
	if t, err := time.Parse(time.ANSIC, s); err == nil {
		return t, true
	}
	return time.Time{}, false
}

// inCenturyOf gives a date with a year of two digits the latest century that puts it no more than 50 years after now, as
// the RFC says.
func inCenturyOf(t, now time.Time) time.Time {
	year := now.UTC().Year()/100*100 + 100 + t.Year()%100
	for {
		at := time.Date(year, t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), 0, time.UTC)
		if !at.After(now.AddDate(50, 0, 0)) {
			return at
		}
		year -= 100
	}
}
