//go:build !race

package server_test

// manyCallers is how many callers meet in one moment.
const manyCallers = 1000

// Under the race detector a proof does fewer things, and each takes longer.
const (
	fewer  = 1
	slower = 1
)
