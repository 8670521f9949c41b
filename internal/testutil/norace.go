//go:build !race

package testutil

// Slower is by how much the race detector slows a program down, 1 without it.
const Slower = 1
