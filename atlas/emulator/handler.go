package emulator

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/tls"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// handle serves every request. Faults and gates do not apply to the control paths.
func (em *Emulator) handle(w http.ResponseWriter, r *http.Request) {
	em.handling.RLock()
	defer em.handling.RUnlock()
	if em.closed {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Date", em.atlas.Now().UTC().Format(http.TimeFormat)) // net/http has the real time otherwise
	body, err := io.ReadAll(r.Body)
	check(err)
	if strings.HasPrefix(r.URL.Path, controlPath+"/") {
		em.control(r, body).write(w)
		return
	}
	rt := routeFor(r)
	answered := em.seen.arrived(rt.op, r)
	defer answered(0)
	f := em.faults.take(rt.op)
	a := em.perform(rt, r, body, f)
	(&sender{w: w, r: r, fault: f, answered: answered}).send(a)
}

// perform makes the answer. It waits at the gates and for the fault's delay, and does the operation
// unless the fault replaces it.
func (em *Emulator) perform(rt route, r *http.Request, body []byte, f Fault) answer {
	ctx := r.Context()
	before, after := f.Delay, time.Duration(0)
	if f.AfterEffect {
		before, after = after, before
	}
	check(em.gates.pass(ctx, rt.op, false))
	if f.EvenIfGone {
		check(wait(context.WithoutCancel(ctx), before))
	} else {
		check(wait(ctx, before))
	}
	var a answer
	if !f.replaces() || f.AfterEffect {
		a = rt.do(em.atlas, r, body)
	}
	check(em.gates.pass(ctx, rt.op, true))
	check(wait(ctx, after))
	return f.change(a, rt.success)
}

// change turns the genuine answer into the fault's. success is the operation's usual status.
func (f Fault) change(a answer, success int) answer {
	switch {
	case f.Body != "":
		a = answer{status: success, contentType: jsonType, body: []byte(f.Body)}
	case f.Status >= 400:
		a = errorAnswer(f.Status, f.Header)
	case f.Status >= 300:
		a = answer{}
	}
	a.status = cmp.Or(f.Status, a.status)
	a.contentType = cmp.Or(f.ContentType, a.contentType)
	header := http.Header{}
	maps.Copy(header, a.header)
	maps.Copy(header, f.Header)
	a.header = header
	return a
}

// check ends a request whose client has left.
func check(err error) {
	if err != nil {
		panic(http.ErrAbortHandler)
	}
}

// wait returns nil after d, or ctx's error when that comes first.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// connectionKey is the context key of a request's connection, which a fault can break.
type connectionKey struct{}

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
		s.flush()
		for i := range body {
			check(wait(s.r.Context(), cmp.Or(s.fault.Interval, 10*time.Millisecond)))
			s.write(body[i : i+1])
			s.flush()
		}
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
		for range 64 { // MiB; a gzip file may have several members; RFC 1952, 2.2
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
