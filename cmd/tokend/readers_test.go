//go:build unix

package main_test

import (
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// outputs are the streams that the tests below stop reading, and what they have tokend write there.
var outputs = map[string]struct {
	args []string
	of   func(*service) *output
}{
	"log":   {[]string{"--log-level=debug"}, func(s *service) *output { return s.stderr }},
	"audit": {[]string{"--audit-file=-"}, func(s *service) *output { return s.stdout }},
}

// create makes calls that leave a line each in the log and in the audit file.
func create(t *testing.T, s *service, calls int) {
	t.Helper()
	client := newHTTPClient(t, nil)
	client.Timeout = patience / 2
	for range calls {
		got, err := do(client, newRequest(t, http.MethodPost, "http://"+s.http+restPath, "", "Authorization", "JWT "+s.atlas.Org(0).JWT()))
		if err != nil || got.status != http.StatusCreated {
			t.Fatalf("%v, %d %s", err, got.status, got.body)
		}
	}
}

// TestFault74Process checks that calls are answered and SIGTERM stops the process although nothing
// reads what it writes.
func TestFault74Process(t *testing.T) {
	t.Parallel()
	for name, out := range outputs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startBuilt(t, out.args...)
			released := make(chan struct{})
			release := sync.OnceFunc(func() { close(released) })
			t.Cleanup(release)
			out.of(s).onRead(func() error {
				<-released
				return nil
			})
			create(t, s, 1000) // a pipe holds 64 KiB, and each call leaves 200 bytes at least
			s.signal(t, syscall.SIGTERM)
			poll(t, "the process has ended", func() bool { return errors.Is(s.Signal(syscall.Signal(0)), os.ErrProcessDone) })
			release()
			if code := s.awaitEnd(t); code != 0 {
				t.Errorf("exit status %d", code)
			}
		})
	}
}

// TestFault75Process checks that the process outlives the readers of its log and audit records, and
// counts what they miss.
func TestFault75Process(t *testing.T) {
	t.Parallel()
	for name, out := range outputs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startBuilt(t, out.args...)
			out.of(s).onRead(func() error { return io.ErrClosedPipe })
			create(t, s, 10)
			poll(t, "lost lines are counted", func() bool {
				for line := range strings.Lines(probe(t, s.admin, "/metrics")) {
					if strings.HasPrefix(line, "tokend_") && strings.Contains(line, "_lost_total ") && !strings.HasSuffix(line, " 0\n") {
						return true
					}
				}
				return false
			})
			s.signal(t, syscall.SIGTERM)
			if code := s.awaitEnd(t); code != 0 {
				t.Errorf("exit status %d", code)
			}
		})
	}
}
