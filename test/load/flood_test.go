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

// awaitEnd waits until the server ends a connection, which may take longer than it should where the
// machine is busy.
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

// awaitConns waits until so many connections are open on a listener, which may take longer than it
// should where the machine is busy.
func awaitConns(t *testing.T, s *testutil.Service, l testutil.Listener, want int) {
	t.Helper()
	name := map[testutil.Listener]string{testutil.GRPC: "gRPC", testutil.REST: "HTTP"}[l]
	line := fmt.Sprintf("\ntokend_connections_open{listener=%q} %d\n", name, want)
	for range 300 {
		if _, metrics := s.Get(t, "/metrics"); strings.Contains(metrics, line) {
			return
		}
		<-time.After(100 * time.Millisecond)
	}
	t.Errorf("in vain: %s", strings.TrimSpace(line))
}

// footprint is what this process, which has both ends of each connection, takes.
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

// checkGrowth fails the test if more was taken since than a flood may cost, once what it has begun
// has ended.
func (f footprint) checkGrowth(t *testing.T, mostHeap int64, mostGoroutines int) {
	t.Helper()
	testutil.Eventually(t, func() bool { return runtime.NumGoroutine()-f.goroutines <= mostGoroutines }, "goroutines of the flood are left")
	if grown := measureFootprint().heap - f.heap; grown > mostHeap {
		t.Errorf("%d KiB more of memory are in use, want at most %d", grown>>10, mostHeap>>10)
	}
}

// floodModes are where HTTP/2 is spoken.
var floodModes = []struct {
	listener testutil.Listener
	mode     testutil.Security
}{{testutil.GRPC, testutil.Plaintext}, {testutil.GRPC, testutil.ServerTLS}, {testutil.REST, testutil.ServerTLS}, {testutil.REST, testutil.Plaintext}}
