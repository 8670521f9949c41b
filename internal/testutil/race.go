//go:build race

package testutil

// ManyCallers is how many callers meet in one moment. Under the race detector, a thousand handshakes and calls at once would
// outlast the timeouts that notice a dead connection.
const ManyCallers = 200

// Slower is by how much the race detector slows a program down.
const Slower = 4
