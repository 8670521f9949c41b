package rest

import (
	"errors"
	"math"
	"strconv"
	"time"
)

// grpcTimeoutHeader has the timeout of a REST call, in gRPC's notation.
const grpcTimeoutHeader = "Grpc-Timeout"

// noTimeout means that a call has no timeout, or one longer than a time.Duration holds.
const noTimeout time.Duration = math.MaxInt64

var errTimeoutHeader = errors.New("the Grpc-Timeout header is not up to 8 digits and a unit")

// grpcTimeout parses the values of a Grpc-Timeout header: none, or one with up to 8 digits and a
// unit (gRPC over HTTP/2, section Requests).
func grpcTimeout(values []string) (time.Duration, error) {
	if len(values) == 0 {
		return noTimeout, nil
	}
	value := values[0]
	if len(values) > 1 || len(value) < 2 || len(value) > 9 {
		return noTimeout, errTimeoutHeader
	}
	unit, ok := timeoutUnits[value[len(value)-1]]
	n, err := strconv.ParseUint(value[:len(value)-1], 10, 32)
	switch {
	case !ok || err != nil:
		return noTimeout, errTimeoutHeader
	case time.Duration(n) > noTimeout/unit:
		return noTimeout, nil
	}
	return time.Duration(n) * unit, nil
}

var timeoutUnits = map[byte]time.Duration{
	'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond,
}
