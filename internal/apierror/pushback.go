package apierror

import (
	"strconv"
	"time"
)

// PushbackTrailer tells the retry policy of a gRPC client what to do about an error, whatever that policy says (gRFC A6): wait
// this many milliseconds before the next attempt, or make none.
const PushbackTrailer = "grpc-retry-pushback-ms"

// Pushback is the value of that trailer: RetryInfo's delay, and to stop where there is no RetryInfo. What no waiting mends
// fails again in the same way. Some of it does harm as well: a delete that may have happened would take a newer token with
// it, a credential that is refused over and over gets its account locked, and a conflict or a fault of ours says nothing of
// what was done.
func (e *Error) Pushback() string {
	delay := e.RetryDelay()
	if delay == 0 {
		return "-1"
	}
	return strconv.FormatInt(int64((delay+time.Millisecond-1)/time.Millisecond), 10)
}
