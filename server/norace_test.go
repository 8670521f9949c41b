//go:build !race

package server_test

// manyCallers is how many callers meet in one moment.
const manyCallers = 1000
