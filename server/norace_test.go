//go:build !race

package server_test

// manyCallers is how many callers meet in one moment.
const manyCallers = 1000

// slowdown is how much less is done under the race detector in the same time.
const slowdown = 1
