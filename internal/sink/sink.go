// Package sink writes the lines of the log and of the audit file, so that no call waits for a slow
// reader. Lines go into a bounded buffer, and one goroutine writes them. Lines that do not fit, or
// cannot be written, are lost; they are counted and reported.
package sink

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// maxPending bounds the lines that wait, in bytes: some ten thousand. Those being written may
	// be as many again.
	maxPending = 2 << 20
	// closeTimeout bounds how long Close waits for a reader.
	closeTimeout = 500 * time.Millisecond
)

// errFull is the cause of a loss when the reader does not keep up, or has stopped reading.
var errFull = errors.New("the buffer is full: the reader is too slow or has stopped")

// Sink is an io.Writer that never waits. Each Write has to be one line, as those of slog's handlers
// are.
type Sink struct {
	// Lost counts the lines that were lost.
	Lost prometheus.Counter

	to      io.Writer
	file    *File             // to, if it is a file
	losing  func(cause error) // called when lines begin to be lost; may be nil
	resumed func(lost int)    // called when lines are written again, with how many were lost

	done chan struct{} // closed when the goroutine ends
	wake *sync.Cond    // of mu; there are lines, or Close has been called

	mu      sync.Mutex
	pending []byte // guarded by mu; whole lines
	closed  bool   // guarded by mu; Close has been called
	ended   bool   // guarded by mu; nothing is written any more
	lost    int    // guarded by mu; since lines were last written without a loss

	torn bool // used by the goroutine only: what has been written ends in the middle of a line
}

// ForLog returns a logger with the handler that newHandler makes for its output, and the sink
// between that and to. Once lines are written again after a loss, a line says how many were lost.
func ForLog(to io.Writer, newHandler func(io.Writer) slog.Handler) (*slog.Logger, *Sink) {
	s := newSink(to, prometheus.CounterOpts{
		Name: "tokend_log_lines_lost_total", Help: "Lines of the log that could not be written, or found no room because its reader is too slow.",
	})
	log := slog.New(newHandler(s))
	s.resumed = func(lost int) { log.Warn("log lines were lost", slog.Int("lost", lost)) }
	go s.run()
	return log, s
}

// ForAudit returns a sink for audit records. The log says when records begin to be lost, and how
// many were once they are written again.
func ForAudit(to io.Writer, log *slog.Logger) *Sink {
	s := newSink(to, prometheus.CounterOpts{
		Name: "tokend_audit_records_lost_total", Help: "Audit records that could not be written, or found no room because their reader is too slow.",
	})
	s.losing = func(cause error) { log.Error("audit records are lost", slog.String("cause", cause.Error())) }
	s.resumed = func(lost int) { log.Warn("audit records are written again", slog.Int("lost", lost)) }
	go s.run()
	return s
}

func newSink(to io.Writer, lost prometheus.CounterOpts) *Sink {
	s := &Sink{Lost: prometheus.NewCounter(lost), to: to, done: make(chan struct{})}
	s.wake = sync.NewCond(&s.mu)
	s.file, _ = to.(*File)
	return s
}

// Write implements io.Writer. It does not fail: a line that finds no room is counted.
func (s *Sink) Write(line []byte) (int, error) {
	s.mu.Lock()
	fits := !s.ended && len(s.pending)+len(line) <= maxPending
	if fits {
		s.pending = append(s.pending, line...)
	}
	s.mu.Unlock()
	s.wake.Signal()
	if !fits {
		s.lose(1, errFull)
	}
	return len(line), nil
}

// Close writes the lines that wait, for a short time at most: a reader that has stopped must not
// keep the process from ending. Lines that are not written by then are lost.
func (s *Sink) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.wake.Signal()
	select {
	case <-s.done:
		return
	case <-time.After(closeTimeout):
	}
	s.mu.Lock()
	left := bytes.Count(s.pending, newline)
	s.pending, s.ended = nil, true
	s.mu.Unlock()
	if left > 0 {
		s.lose(left, errFull)
	}
}

// run writes lines until Close.
func (s *Sink) run() {
	defer close(s.done)
	if s.file != nil {
		defer s.file.close()
	}
	var batch []byte
	for {
		s.mu.Lock()
		for len(s.pending) == 0 && !s.closed {
			s.wake.Wait()
		}
		batch, s.pending = s.pending, batch[:0]
		s.ended = s.ended || len(batch) == 0
		ended := s.ended
		s.mu.Unlock()
		if ended {
			return
		}
		for line := range bytes.Lines(batch) {
			s.write(line)
		}
		if cap(batch) > maxPending/8 {
			batch = nil // it was a burst
		}
	}
}

var newline = []byte("\n")

// write writes one line, on a line of its own even if the one before was torn, as on a full disk.
func (s *Sink) write(line []byte) {
	if s.file != nil && s.file.advance() {
		s.torn = s.file.endsTorn()
	}
	if s.torn {
		if _, err := s.to.Write(newline); err != nil {
			s.lose(1, err)
			return
		}
		s.torn = false
	}
	n, err := s.to.Write(line)
	if err == nil {
		s.resume()
		return
	}
	s.torn = n > 0
	if n < len(line)-1 { // else the line lacks nothing but its end
		s.lose(1, err)
	}
}

func (s *Sink) lose(n int, cause error) {
	s.Lost.Add(float64(n))
	s.mu.Lock()
	first := s.lost == 0
	s.lost += n
	s.mu.Unlock()
	if first && s.losing != nil {
		s.losing(cause)
	}
}

// resume reports what was lost, after a line has been written.
func (s *Sink) resume() {
	s.mu.Lock()
	lost := s.lost
	s.lost = 0
	s.mu.Unlock()
	if lost > 0 {
		s.resumed(lost)
	}
}
