//go:build race

package testutil

// Slower is by how much the race detector slows a program down.
const Slower = 4
