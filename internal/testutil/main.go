package testutil

import (
	"flag"
	"os"
	"runtime"
	"strconv"
	"testing"

	"go.uber.org/goleak"
)

// Descriptors is how many the process has open; 0 where nobody says.
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

// Main runs the tests of a package: more of them at a time than there are processors, since most
// wait rather than work. It fails if a goroutine is left over that ignored does not name.
func Main(m *testing.M, ignored ...goleak.Option) {
	flag.Parse()
	if parallel := flag.Lookup("test.parallel"); parallel.Value.String() == parallel.DefValue {
		_ = flag.Set("test.parallel", strconv.Itoa(4*runtime.GOMAXPROCS(0))) // it is a number
	}
	goleak.VerifyTestMain(m, ignored...)
}
