//go:build race

package server_test

// manyCallers is fewer under the race detector, where a thousand handshakes and calls at once outlast the time-outs that
// notice a dead connection.
const manyCallers = 200

// Under the race detector a proof does fewer things, and each takes longer.
const (
	fewer  = 10
	slower = 4
)
