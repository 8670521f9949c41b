package load

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// TestLogFlood checks that refused calls, unknown routes and failed connections cannot make the log
// grow faster than its limits, and that suppressed lines are counted.
func TestLogFlood(t *testing.T) {
	testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
		s := v.Start(t, testutil.ServerTLS, func(c *server.Config, _ *atlas.Config) { c.MaxConns = 30 })
		const each = 200 // more than the burst of a kind
		start := time.Now()
		var wg sync.WaitGroup
		for _, c := range s.Callers(t) {
			wg.Go(func() {
				for range each {
					c.Call(testutil.Context(t), testutil.Create)
				}
			})
		}
		rest := s.RESTCaller(t)
		wg.Go(func() {
			for range each {
				rest.Do(testutil.Context(t), "GET", "/nowhere", nil)
			}
		})
		for _, l := range []testutil.Listener{testutil.GRPC, testutil.REST} {
			wg.Go(func() {
				for range each { // no TLS
					conn := s.Dial(t, l)
					_, _ = conn.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
					_, _ = conn.Read(make([]byte, 1))
					_ = conn.Close()
				}
			})
		}
		wg.Wait()
		const kinds = 4 // CREDENTIAL_MISSING, ROUTE_NOT_FOUND, handshake, connection
		most := kinds * (100 + 10*(int(time.Since(start).Seconds())+1))
		lines := 0
		for line := range strings.Lines(s.Log.String()) {
			if !strings.Contains(line, `"level":"DEBUG"`) {
				lines++
			}
		}
		if lines > most || lines < 200 {
			t.Errorf("%d lines, want 200 to %d", lines, most)
		}
		_, metrics := s.Get(t, "/metrics")
		for _, kind := range []string{"CREDENTIAL_MISSING", "ROUTE_NOT_FOUND", "handshake"} {
			if !strings.Contains(metrics, `tokend_log_lines_suppressed_total{kind="`+kind+`"}`) {
				t.Errorf("/metrics does not count suppressed lines of kind %s", kind)
			}
		}
	})
}
