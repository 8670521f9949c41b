package emulator

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/tls"
	"maps"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

const (
	bombParts       = 64 // the MiB that a GzipBomb inflates to
	defaultInterval = 10 * time.Millisecond
)

// sender puts one answer on the wire, as badly as planned.
type sender struct {
	w        http.ResponseWriter
	r        *http.Request
	plan     plan
	answered func(status int) // counts; called before the client can see the answer
}

func (s *sender) send(a answer) {
	s.drop()
	s.inform()
	if s.plan.decider.Shape == Empty {
		a.body = nil
	}
	maps.Copy(s.w.Header(), a.header)
	if a.contentType != "" {
		s.w.Header().Set("Content-Type", a.contentType)
	} else {
		s.w.Header()["Content-Type"] = nil // else net/http guesses one
	}
	switch s.plan.decider.Shape {
	case Whole, Empty, Truncated, Reset:
		s.begin(a, len(a.body))
	case Overlong:
		s.begin(a, len(a.body)+1)
	case Gzip, GzipBomb:
		s.w.Header().Set("Content-Encoding", "gzip")
		s.begin(a, -1)
	default:
		s.begin(a, -1)
	}
	if a.status != http.StatusNoContent && a.status != http.StatusNotModified {
		s.body(a.body)
	}
}

// begin sends the header. A length of -1 leaves it open.
func (s *sender) begin(a answer, length int) {
	if length >= 0 && a.status != http.StatusNoContent {
		s.w.Header().Set("Content-Length", strconv.Itoa(length))
	}
	s.answered(a.status)
	s.w.WriteHeader(a.status)
}

// body sends the body. A failed write means that the client left.
func (s *sender) body(body []byte) {
	half := body[:(len(body)+1)/2]
	switch s.plan.decider.Shape {
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
	case Gzip:
		s.write(compress(body))
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
	interval := cmp.Or(s.plan.decider.Interval, defaultInterval)
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

// inform sends the planned 103 answers.
func (s *sender) inform() {
	for n := s.plan.informational; n != 0; n-- {
		s.w.Header().Set("Link", "</v1>; rel=preconnect")
		s.w.WriteHeader(http.StatusEarlyHints)
		check(s.r.Context().Err())
	}
	s.w.Header().Del("Link")
}

// drop ends the request without an answer, if that is planned.
func (s *sender) drop() {
	if s.plan.decider.Drop == NoDrop {
		return
	}
	s.answered(0)
	switch s.plan.decider.Drop {
	case ResetConnection:
		s.breakConnection(true)
	case CloseConnection:
		s.breakConnection(false)
	}
	panic(http.ErrAbortHandler) // RST_STREAM on HTTP/2
}

// breakConnection closes the TCP connection under TLS and ends the request.
// With reset, the peer gets an RST instead of a FIN.
func (s *sender) breakConnection(reset bool) {
	if c, ok := s.r.Context().Value(connectionKey{}).(*tls.Conn); ok {
		if tcp, ok := c.NetConn().(*net.TCPConn); ok && reset {
			_ = tcp.SetLinger(0)
		}
		_ = c.NetConn().Close()
	}
	panic(http.ErrAbortHandler)
}
