package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
)

// openAudit opens the stream of audit records that --audit-file names. If this is a trial, a file that it had to make does not
// stay: it could belong to another user than the one who serves.
func (s *setup) openAudit(file string, stdout io.Writer) {
	switch file {
	case "":
		return
	case "-":
	default:
		_, missing := os.Stat(file)
		f := &auditFile{path: file}
		if err := f.reopen(); err != nil {
			s.fail("--audit-file", err)
			return
		}
		stdout, s.auditFile = f, f
		s.close = append(s.close, func() {
			f.close()
			if s.trial && errors.Is(missing, fs.ErrNotExist) {
				_ = os.Remove(file)
			}
		})
	}
	w := &auditWriter{to: stdout, log: s.Logger, lostRecords: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "tokend_audit_records_lost_total", Help: "Audit records that could not be written.",
	})}
	s.register(w.lostRecords)
	s.Audit = slog.New(slog.NewJSONHandler(w, nil))
}

// auditFile is the file of that name, as of when it was last opened: whoever renames it for keeping has it opened again.
type auditFile struct {
	path string
	mu   sync.Mutex
	file *os.File // guarded by mu, so that no record is on its way into a file that is being closed
}

func (a *auditFile) Write(record []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.file.Write(record)
}

// reopen goes on in the file that has the name now, making it if there is none. If it cannot, records go on into the one before.
func (a *auditFile) reopen() error {
	// Without O_NONBLOCK the opening of a pipe waits for somebody to read from it, and SIGTERM with it.
	file, err := os.OpenFile(a.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY|syscall.O_NONBLOCK, 0o600)
	if errors.Is(err, syscall.ENXIO) {
		return fmt.Errorf("%w: nobody reads from that pipe", err)
	}
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.file
	if a.file = file; before != nil {
		_ = before.Close() // nothing of it is buffered here
	}
	return nil
}

func (a *auditFile) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = a.file.Close()
}

// auditWriter says in the log when records are lost and when they no longer are, since slog tells nobody.
type auditWriter struct {
	to   io.Writer
	log  *slog.Logger
	lost atomic.Bool // the last record was

	lostRecords prometheus.Counter
}

func (w *auditWriter) Write(record []byte) (int, error) {
	n, err := w.to.Write(record)
	if err != nil {
		w.lostRecords.Inc()
	}
	switch {
	case err != nil && w.lost.CompareAndSwap(false, true):
		w.log.Error("audit records are lost", slog.String("cause", err.Error()))
	case err == nil && w.lost.CompareAndSwap(true, false):
		w.log.Info("audit records are written again")
	}
	return n, err
}
