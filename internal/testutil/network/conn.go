package network

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// stream is one direction of a connection.
type stream struct {
	link  *Link
	other *stream // the other direction

	mu                          *sync.Mutex   // shared by both directions, which break together
	changed                     chan struct{} // guarded by mu; closed and replaced at each change
	queue                       []segment     // guarded by mu; in flight, in order
	buffered                    int           // guarded by mu; bytes in queue, and lost ones
	last                        time.Time     // guarded by mu; when the last segment arrives
	room                        int           // guarded by mu; bytes that still arrive before a truncation; -1: all
	lost                        bool          // guarded by mu; nothing arrives any more, without an error
	reset                       bool          // guarded by mu
	readerGone, writerGone      bool          // guarded by mu
	readDeadline, writeDeadline time.Time     // guarded by mu
}

// segment is data written at once, or the end.
type segment struct {
	data []byte
	at   time.Time // arrives
	end  bool
}

// StreamWindow is the number of bytes that may be in flight before a writer waits.
const StreamWindow = 256 << 10

// newStreams returns the two directions of a connection.
func newStreams(link *Link) (there, back *stream) {
	var mu sync.Mutex
	there = &stream{link: link, mu: &mu, changed: make(chan struct{}), room: -1}
	back = &stream{link: link, mu: &mu, changed: make(chan struct{}), room: -1}
	there.other, back.other = back, there
	return there, back
}

// signal wakes all waiters. The caller holds mu.
func (s *stream) signal() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// wait returns after a change, or at the first of the times that are not zero. The caller holds mu,
// which wait releases meanwhile.
func (s *stream) wait(times ...time.Time) {
	changed := s.changed
	s.mu.Unlock()
	defer s.mu.Lock()
	var first time.Time
	for _, t := range times {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	if first.IsZero() {
		<-changed
		return
	}
	timer := time.NewTimer(time.Until(first))
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	}
}

// ErrReset is the error of both ends of a connection that was reset.
var ErrReset = os.NewSyscallError("connection", syscall.ECONNRESET)

func (s *stream) read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		var arrives time.Time
		switch now := time.Now(); {
		case s.readerGone:
			return 0, net.ErrClosed
		case s.reset:
			return 0, ErrReset
		case !s.readDeadline.IsZero() && !now.Before(s.readDeadline):
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case len(s.queue) > 0 && !now.Before(s.queue[0].at):
			return s.take(p)
		case len(s.queue) > 0:
			arrives = s.queue[0].at
		}
		s.wait(arrives, s.readDeadline)
	}
}

// take reads what has arrived. The caller holds mu.
func (s *stream) take(p []byte) (int, error) {
	first := &s.queue[0]
	if first.end {
		return 0, io.EOF
	}
	n := copy(p, first.data)
	if first.data = first.data[n:]; len(first.data) == 0 {
		s.queue = s.queue[1:]
	}
	s.buffered -= n
	s.signal()
	return n, nil
}

func (s *stream) write(p []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n < len(p) {
		switch {
		case s.writerGone:
			return n, net.ErrClosed
		case s.reset:
			return n, ErrReset
		case !s.writeDeadline.IsZero() && !time.Now().Before(s.writeDeadline):
			return n, os.ErrDeadlineExceeded
		case s.buffered >= StreamWindow:
			s.wait(s.writeDeadline)
			continue
		}
		piece := s.link.piece(p[n:])
		n += len(piece)
		s.send(piece)
	}
	return n, nil
}

// send sends one segment. The caller holds mu.
func (s *stream) send(piece []byte) {
	s.buffered += len(piece)
	switch {
	case s.lost:
		return
	case s.link.silent():
		s.vanish()
		s.link.markLost(s)
		return
	case s.readerGone: // the peer's kernel answers with a reset, which then fails both directions
		time.AfterFunc(time.Until(s.link.arrival()), func() { s.update(s.breaks) })
		return
	}
	if s.room >= 0 {
		piece = piece[:min(len(piece), s.room)]
		s.room -= len(piece)
	}
	s.append(segment{data: append([]byte(nil), piece...)})
	if s.room == 0 {
		s.append(segment{end: true})
	}
}

// append queues a segment that arrives after the latency, in order. The caller holds mu.
func (s *stream) append(next segment) {
	if len(next.data) == 0 && !next.end {
		return
	}
	if at := s.link.arrival(); at.After(s.last) {
		s.last = at
	}
	next.at = s.last
	s.queue = append(s.queue, next)
	s.signal()
}

// vanish loses what is in flight in both directions, and all that follows. The caller holds mu.
func (s *stream) vanish() {
	for _, lost := range []*stream{s, s.other} {
		lost.lost, lost.queue = true, nil
		lost.signal()
	}
}

// breaks resets both directions, except those that are lost. The caller holds mu.
func (s *stream) breaks() {
	for _, broken := range []*stream{s, s.other} {
		broken.reset = broken.reset || !broken.lost
		broken.signal()
	}
}

// finish closes the writer: what is in flight arrives, then the end.
func (s *stream) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.writerGone && !s.lost {
		s.append(segment{end: true})
	}
	s.writerGone = true
	s.signal()
}

// leave closes the reader.
func (s *stream) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readerGone, s.queue = true, nil
	s.signal()
}

// update makes a change and wakes all waiters.
func (s *stream) update(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	s.signal()
}

// Conn is one end of a connection.
type Conn struct {
	in, out       *stream
	local, remote net.Addr
	abrupt        bool // Close resets
	closed        func()
	once          sync.Once
}

func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.in.read(p)
	return n, c.wrap("read", err)
}

func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.out.write(p)
	return n, c.wrap("write", err)
}

func (c *Conn) wrap(op string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		if c.abrupt {
			c.Reset()
		}
		c.out.finish()
		c.in.leave()
		c.closed()
		err = nil
	})
	return err
}

// Reset breaks both directions.
func (c *Conn) Reset() { c.in.update(c.in.breaks) }

// Vanish loses both directions, as if the peer had lost power or a middlebox its state.
func (c *Conn) Vanish() { c.in.update(c.in.vanish) }

// Truncate ends the data that arrives from now on after some bytes.
func (c *Conn) Truncate(after int) { c.in.update(func() { c.in.room = after }) }

// SetLinger makes Close reset the connection if sec is 0.
func (c *Conn) SetLinger(sec int) error {
	c.abrupt = sec == 0
	return nil
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t) // it has no error to return
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.in.update(func() { c.in.readDeadline = t })
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.out.update(func() { c.out.writeDeadline = t })
	return nil
}
