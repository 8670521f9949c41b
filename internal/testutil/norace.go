//go:build !race

package testutil

// ManyCallers is how many callers meet in one moment.
const ManyCallers = 1000

// Slower is by how much the race detector slows a program down, 1 without it.
const Slower = 1
