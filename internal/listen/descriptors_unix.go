//go:build unix

package listen

import (
	"math"

	"golang.org/x/sys/unix"
)

// Descriptors returns how many files and connections the process may have open. The Go runtime
// raises the soft limit to the hard limit.
func Descriptors() int {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil || limit.Cur > math.MaxInt32 {
		return math.MaxInt32
	}
	return int(limit.Cur)
}
