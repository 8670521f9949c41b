//go:build race

package testutil

// Slower is the factor by which the race detector slows a program down.
const Slower = 4
