package load

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

// awaitEnd waits until the server closes a connection.
func awaitEnd(t *testing.T, conn net.Conn, what string) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	buffer := make([]byte, 4<<10)
	for {
		if _, err := conn.Read(buffer); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: the connection is still open", what)
			}
			return
		}
	}
}

// awaitConns waits until a listener has this many connections.
func awaitConns(t *testing.T, s *testutil.Service, l testutil.Listener, want int) {
	t.Helper()
	name := map[testutil.Listener]string{testutil.GRPC: "gRPC", testutil.REST: "HTTP"}[l]
	line := fmt.Sprintf("\ntokend_connections_open{listener=%q} %d\n", name, want)
	testutil.Eventually(t, func() bool { return strings.Contains(s.Metrics(t), line) }, "not in /metrics: "+line)
}

// footprint is the memory and goroutines of this process, which has both ends of each connection.
type footprint struct {
	heap       int64
	goroutines int
}

func measureFootprint() footprint {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return footprint{int64(stats.HeapAlloc), runtime.NumGoroutine()}
}

// checkGrowth fails the test if memory or goroutines have grown more after a flood.
func (f footprint) checkGrowth(t *testing.T, mostHeap int64, mostGoroutines int) {
	t.Helper()
	testutil.Eventually(t, func() bool { return runtime.NumGoroutine()-f.goroutines <= mostGoroutines }, "goroutines of the flood do not end")
	if grown := measureFootprint().heap - f.heap; grown > mostHeap {
		t.Errorf("the heap grew by %d KiB, want at most %d", grown>>10, mostHeap>>10)
	}
}

// floodModes are the listeners and modes with HTTP/2.
var floodModes = []struct {
	listener testutil.Listener
	mode     testutil.Security
}{{testutil.GRPC, testutil.Plaintext}, {testutil.GRPC, testutil.ServerTLS}, {testutil.REST, testutil.ServerTLS}, {testutil.REST, testutil.Plaintext}}
