//go:build race

package server_test

// manyCallers is fewer under the race detector, where a thousand handshakes and calls at once outlast the time-outs that
// notice a dead connection.
const manyCallers = 200

// slowdown is how much less is done under the race detector in the same time.
const slowdown = 6
