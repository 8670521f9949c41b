//go:build !unix

package listen

import "math"

// Descriptors returns how many files and connections the process may have open: here, no practical
// limit.
func Descriptors() int { return math.MaxInt32 }
