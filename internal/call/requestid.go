package call

import (
	"crypto/rand"
	"strings"
)

// RequestIDHeader carries a call's id in and out, on both transports.
const RequestIDHeader = "x-request-id"

// maxRequestID bounds what a caller may put into every log line about its call, in bytes.
const maxRequestID = 128

// chooseRequestID chooses a call's id from the values of its header: the caller's if it is fit for a log line, else a new one.
func chooseRequestID(values []string) string {
	if len(values) == 1 && isRequestID(values[0]) {
		return values[0]
	}
	return rand.Text()
}

// isRequestID keeps an id to what UUIDs, ULIDs and trace ids are made of. A JWT has the same alphabet, and somebody will
// send one in the wrong header: three parts joined by dots are not taken.
func isRequestID(s string) bool {
	if s == "" || len(s) > maxRequestID || strings.Count(s, ".") >= 2 {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-_.:/+=", c) >= 0) {
			return false
		}
	}
	return true
}
