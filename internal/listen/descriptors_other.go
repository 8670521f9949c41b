//go:build !unix

package listen

import "math"

// Descriptors is how many files and connections the process may have open: here, no number that one could run into.
func Descriptors() int { return math.MaxInt32 }
