package emulator

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/tls"
	"maps"
	"net/http"
	"strconv"
	"sync"
	"time"
)

const (
	bombParts       = 64 // the MiB that a GzipBomb inflates to
	defaultInterval = 10 * time.Millisecond
)

// sender writes one answer, with the fault applied.
type sender struct {
	w        http.ResponseWriter
	r        *http.Request
	fault    Fault
	answered func(status int) // counts; called before the client can see the answer
}

func (s *sender) send(a answer) {
	s.drop()
	s.inform()
	extra := http.Header{"Content-Length": {strconv.Itoa(len(a.body))}}
	switch s.fault.Shape {
	case Empty:
		a.body = nil
		extra.Set("Content-Length", "0")
	case Overlong:
		extra.Set("Content-Length", strconv.Itoa(len(a.body)+1))
	case GzipBomb:
		extra = http.Header{"Content-Encoding": {"gzip"}}
	case Drip, Stall, Endless:
		extra = nil
	}
	bodiless := a.status == http.StatusNoContent || a.status == http.StatusNotModified
	if !bodiless {
		maps.Copy(s.w.Header(), extra)
	}
	s.answered(a.status)
	a.writeHeader(s.w)
	if !bodiless {
		s.body(a.body)
	}
}

// body sends the body. A failed write means that the client left.
func (s *sender) body(body []byte) {
	half := body[:(len(body)+1)/2]
	switch s.fault.Shape {
	case Whole, Empty, Overlong:
		s.write(body)
	case Truncated:
		s.write(half)
	case Reset:
		s.write(half)
		s.flush()
		s.breakConnection(true)
	case Drip:
		s.drip(body)
	case Stall:
		s.flush()
		<-s.r.Context().Done()
		panic(http.ErrAbortHandler)
	case Endless:
		s.write(body)
		for {
			s.write(spaces)
		}
	case GzipBomb:
		s.write(compress(body))
		for range bombParts { // a gzip file may have several members; RFC 1952, 2.2
			s.write(bombPart())
		}
	}
}

var spaces = bytes.Repeat([]byte(" "), 4096)

func (s *sender) write(b []byte) {
	_, err := s.w.Write(b)
	check(err)
	check(s.r.Context().Err())
}

func (s *sender) flush() { check(http.NewResponseController(s.w).Flush()) }

func (s *sender) drip(body []byte) {
	interval := cmp.Or(s.fault.Interval, defaultInterval)
	s.flush()
	for i := range body {
		check(wait(s.r.Context(), interval))
		s.write(body[i : i+1])
		s.flush()
	}
}

// bombPart inflates to a MiB of spaces, in about a KiB.
var bombPart = sync.OnceValue(func() []byte { return compress(bytes.Repeat(spaces, (1<<20)/len(spaces))) })

func compress(b []byte) []byte {
	var compressed bytes.Buffer
	z := gzip.NewWriter(&compressed)
	_, _ = z.Write(b) // a buffer takes everything
	_ = z.Close()
	return compressed.Bytes()
}

// inform sends the fault's 103 answers.
func (s *sender) inform() {
	for n := s.fault.Informational; n != 0; n-- {
		s.w.Header().Set("Link", "</v1>; rel=preconnect")
		s.w.WriteHeader(http.StatusEarlyHints)
		check(s.r.Context().Err())
	}
	s.w.Header().Del("Link")
}

// drop ends the request without an answer, if the fault says so.
func (s *sender) drop() {
	if s.fault.Drop == NoDrop {
		return
	}
	s.answered(0)
	if s.fault.Drop != AbortStream {
		s.breakConnection(s.fault.Drop == ResetConnection)
	}
	panic(http.ErrAbortHandler) // RST_STREAM on HTTP/2
}

// breakConnection closes the TCP connection under TLS and ends the request. With reset, the peer
// gets an RST instead of a FIN.
func (s *sender) breakConnection(reset bool) {
	if c, ok := s.r.Context().Value(connectionKey{}).(*tls.Conn); ok {
		if tcp, ok := c.NetConn().(interface{ SetLinger(sec int) error }); ok && reset {
			_ = tcp.SetLinger(0)
		}
		_ = c.NetConn().Close()
	}
	panic(http.ErrAbortHandler)
}
