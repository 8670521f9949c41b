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
	if path, ok := strings.CutPrefix(r.URL.Path, controlPath+"/"); ok {
		a := em.control(r.Method+" "+path, body)
		a.writeHeader(w)
		_, _ = w.Write(a.body) // the client may have left
		return
	}
	rt := routeFor(r)
	answered := em.seen.arrived(rt.op, r)
	defer answered(0)
	f := em.faults.take(rt.op, em.atlas.orgOf(r))
	a := em.perform(rt, r, body, f)
	s := &sender{w: w, r: r}
	if f.Drop != NoDrop {
		answered(0)
		s.drop(f.Drop)
	}
	s.send(a, f.Shape, answered)
}

// perform makes the answer. It waits at the gates and for the fault's delay, and does the operation
// unless the fault replaces it.
func (em *Emulator) perform(rt route, r *http.Request, body []byte, f Fault) (a answer) {
	ctx, delayed := r.Context(), r.Context()
	if f.EvenIfGone {
		delayed = context.WithoutCancel(ctx)
	}
	check(em.gates.pass(ctx, rt.op, false))
	if !f.AfterEffect {
		check(wait(delayed, f.Delay))
	}
	if !f.replaces() || f.AfterEffect {
		a = rt.do(em.atlas, r, body)
	}
	check(em.gates.pass(ctx, rt.op, true))
	if f.AfterEffect {
		check(wait(delayed, f.Delay))
	}
	check(ctx.Err())
	return f.change(a, rt.success)
}

// change turns the genuine answer into the fault's. success is the operation's usual status.
func (f Fault) change(a answer, success int) answer {
	switch {
	case f.Body != "":
		a = answer{status: success, header: http.Header{"Content-Type": {jsonType}}, body: []byte(f.Body)}
	case f.Status == http.StatusUnauthorized:
		a = unauthorized(http.StatusText(f.Status))
	case f.Status >= 400:
		a = detail(f.Status, http.StatusText(f.Status))
	case f.Status >= 300:
		a = answer{}
	}
	a.status = cmp.Or(f.Status, a.status)
	header := http.Header{}
	maps.Copy(header, a.header)
	for name, values := range f.Header {
		header[http.CanonicalHeaderKey(name)] = values
	}
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

// sender writes one answer. A failed write means that the client left, and ends the request.
type sender struct {
	w http.ResponseWriter
	r *http.Request
}

// send calls answered before the client can see the answer.
func (s *sender) send(a answer, shape Shape, answered func(status int)) {
	if shape == Empty {
		a.body = nil
	}
	bodiless := a.status == http.StatusNoContent || a.status == http.StatusNotModified
	switch {
	case bodiless, shape == Endless:
	case shape == GzipBomb:
		s.w.Header().Set("Content-Encoding", "gzip")
	default:
		s.w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	}
	answered(a.status)
	a.writeHeader(s.w)
	if !bodiless {
		s.body(a.body, shape)
	}
}

// dripInterval is the time between two bytes of a Drip.
const dripInterval = 10 * time.Millisecond

func (s *sender) body(body []byte, shape Shape) {
	half := body[:(len(body)+1)/2]
	switch shape {
	case Truncated:
		s.write(half)
	case Reset:
		s.write(half)
		s.flush()
		s.drop(ResetConnection)
	case Drip:
		s.flush()
		for i := range body {
			check(wait(s.r.Context(), dripInterval))
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
		z := gzip.NewWriter(s.w)
		_, err := z.Write(body)
		for n := 0; n < bombSize; n += len(spaces) {
			check(err)
			_, err = z.Write(spaces)
		}
		check(z.Close())
	default:
		s.write(body)
	}
}

const bombSize = 8 << 20

var spaces = bytes.Repeat([]byte(" "), 4096)

func (s *sender) write(b []byte) {
	_, err := s.w.Write(b)
	check(err)
	check(s.r.Context().Err())
}

func (s *sender) flush() { check(http.NewResponseController(s.w).Flush()) }

// drop ends the request, with or without the connection under its TLS.
func (s *sender) drop(how Drop) {
	if how == Flood1xx {
		for {
			s.w.WriteHeader(http.StatusEarlyHints)
			check(s.r.Context().Err())
		}
	}
	if c, ok := s.r.Context().Value(connectionKey{}).(*tls.Conn); ok && how != AbortStream {
		if tcp, ok := c.NetConn().(interface{ SetLinger(sec int) error }); ok && how == ResetConnection {
			_ = tcp.SetLinger(0) // the peer gets an RST instead of a FIN
		}
		_ = c.NetConn().Close()
	}
	panic(http.ErrAbortHandler) // RST_STREAM on HTTP/2
}
