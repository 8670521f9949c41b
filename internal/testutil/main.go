package testutil

import (
	"flag"
	"os"
	"runtime"
	"strconv"
	"testing"

	"go.uber.org/goleak"
)

// Descriptors returns the number of open descriptors; 0 if it is unknown.
func Descriptors(t *testing.T) int {
	t.Helper()
	if runtime.GOOS != "linux" {
		return 0
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

// Main runs the tests of a package, more in parallel than there are processors, since most wait. It
// fails if a test leaks a goroutine.
func Main(m *testing.M, ignored ...goleak.Option) {
	flag.Parse()
	if parallel := flag.Lookup("test.parallel"); parallel.Value.String() == parallel.DefValue {
		_ = flag.Set("test.parallel", strconv.Itoa(4*runtime.GOMAXPROCS(0))) // it is a number
	}
	goleak.VerifyTestMain(m, ignored...)
}
