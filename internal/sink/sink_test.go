package sink_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ForstaLabs/ephemeral-token-service/internal/sink"
)

// stalling is a reader that reads nothing before it is released.
type stalling struct {
	released chan struct{}
	mu       sync.Mutex
	read     bytes.Buffer // guarded by mu
}

func (r *stalling) Write(p []byte) (int, error) {
	<-r.released
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.read.Write(p)
}

func jsonHandler(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, nil) }

// TestFault74StalledAudit checks that no call waits for a reader of audit records that has stopped,
// and that each record is either written or counted.
func TestFault74StalledAudit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		reader, log := &stalling{released: make(chan struct{})}, &bytes.Buffer{}
		s := sink.ForAudit(reader, slog.New(slog.NewTextHandler(log, nil)))
		audit := slog.New(slog.NewJSONHandler(s, nil))
		const records = 100_000
		for n := range records {
			audit.Info("call", slog.Int("n", n))
		}
		lost := int(testutil.ToFloat64(s.Lost))
		if lost == 0 || lost == records {
			t.Fatalf("%d of %d records are lost, want some", lost, records)
		}
		if got := strings.Count(log.String(), "audit records are lost"); got != 1 {
			t.Errorf("the log reports the loss %d times, want once", got)
		}
		close(reader.released)
		synctest.Wait()
		audit.Info("call", slog.Int("n", records))
		s.Close()
		if got := bytes.Count(reader.read.Bytes(), []byte("\n")); got+lost != records+1 {
			t.Errorf("%d written and %d lost, of %d", got, lost, records+1)
		}
		if want := fmt.Sprintf("audit records are written again\" lost=%d\n", lost); strings.Count(log.String(), want) != 1 {
			t.Errorf("the log does not say once %q:\n%s", want, log)
		}
	})
}

// TestFault74StalledLog checks that a log whose reader has stopped does not hold up a stop, and
// that the log says what it lacks.
func TestFault74StalledLog(t *testing.T) {
	t.Parallel()
	fill := func(log *slog.Logger) {
		for range 4000 {
			log.Info("line", slog.String("text", strings.Repeat("x", 1000)))
		}
	}
	t.Run("reads on", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			reader := &stalling{released: make(chan struct{})}
			log, s := sink.ForLog(reader, jsonHandler)
			fill(log)
			lost := int(testutil.ToFloat64(s.Lost))
			close(reader.released)
			s.Close()
			if want := fmt.Sprintf(`"msg":"log lines were lost","lost":%d}`, lost); lost == 0 || strings.Count(reader.read.String(), want) != 1 {
				t.Errorf("%d lines are lost, and the log says so %d times, want once", lost, strings.Count(reader.read.String(), want))
			}
		})
	})
	t.Run("never again", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(*testing.T) {
			reader := &stalling{released: make(chan struct{})}
			log, s := sink.ForLog(reader, jsonHandler)
			fill(log)
			s.Close() // returns in virtual time, or the test is deadlocked
			close(reader.released)
		})
	})
}

// TestFault75ReaderGoesAway checks that lines written to a pipe without a reader are counted, and
// nothing else happens.
func TestFault75ReaderGoesAway(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	_ = r.Close()
	var log bytes.Buffer
	s := sink.ForAudit(w, slog.New(slog.NewTextHandler(&log, nil)))
	for range 3 {
		fmt.Fprintln(s, "{}")
	}
	s.Close()
	if got := testutil.ToFloat64(s.Lost); got != 3 {
		t.Errorf("%v records are lost, want 3", got)
	}
	if !strings.Contains(log.String(), syscall.EPIPE.Error()) {
		t.Errorf("the log does not say why:\n%s", &log)
	}
}

// disk has so many bytes free. What does not fit is written in part, as on a disk that fills up.
type disk struct {
	free int
	file bytes.Buffer
}

func (d *disk) Write(p []byte) (int, error) {
	n := min(len(p), d.free)
	d.free -= n
	d.file.Write(p[:n])
	if n < len(p) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

// TestFault76FullDisk checks, for each number of bytes that the disk still has, that every record
// is a line of its own or counted.
func TestFault76FullDisk(t *testing.T) {
	t.Parallel()
	const record = `{"caller":"a"}`
	for free := range 3 * len(record) {
		synctest.Test(t, func(t *testing.T) {
			d := &disk{free: free}
			s := sink.ForAudit(d, slog.New(slog.DiscardHandler))
			write := func() {
				for range 4 {
					fmt.Fprintln(s, record)
				}
				synctest.Wait()
			}
			write()
			d.free = 1 << 20
			write()
			s.Close()
			whole := 0
			for line := range strings.Lines(d.file.String()) {
				if json.Valid([]byte(line)) {
					whole++
				} else if strings.Contains(line, record) {
					t.Errorf("%d bytes free: a record is on the line of another: %q", free, line)
				}
			}
			if lost := int(testutil.ToFloat64(s.Lost)); whole+lost != 8 {
				t.Errorf("%d bytes free: %d records are whole and %d lost, of 8:\n%s", free, whole, lost, &d.file)
			}
		})
	}
}

// TestFile checks that a file is appended to on a fresh line, and that its successor gets what
// comes after Reopen.
func TestFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.json")
	if err := os.WriteFile(path, []byte("{}\n{\"torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := sink.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		s := sink.ForAudit(f, slog.New(slog.DiscardHandler))
		fmt.Fprintln(s, `{"n":1}`)
		synctest.Wait()
		if err := os.Rename(path, path+".1"); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(s, `{"n":2}`)
		synctest.Wait()
		if err := f.Reopen(); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(s, `{"n":3}`)
		s.Close()
	})
	for path, want := range map[string]string{path + ".1": "{}\n{\"torn\n{\"n\":1}\n{\"n\":2}\n", path: "{\"n\":3}\n"} {
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s has %q, %v; want %q", path, got, err, want)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// TestPipeWithoutReader checks that opening a named pipe does not wait for a reader.
func TestPipeWithoutReader(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Skipf("no named pipes here: %v", err)
	}
	if _, err := sink.OpenFile(path); !errors.Is(err, syscall.ENXIO) || !strings.Contains(err.Error(), "the pipe has no reader") {
		t.Errorf("error %v", err)
	}
}
