package testutil

import (
	"flag"
	"runtime"
	"strconv"
	"testing"

	"go.uber.org/goleak"
)

// Main runs the tests of a package, more in parallel than there are processors, since most wait. It
// fails if a test leaks a goroutine.
func Main(m *testing.M, ignored ...goleak.Option) {
	flag.Parse()
	if parallel := flag.Lookup("test.parallel"); parallel.Value.String() == parallel.DefValue {
		_ = flag.Set("test.parallel", strconv.Itoa(4*runtime.GOMAXPROCS(0))) // it is a number
	}
	goleak.VerifyTestMain(m, ignored...)
}
