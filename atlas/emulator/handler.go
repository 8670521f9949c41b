package emulator

import (
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"time"
)

// maxBody bounds what is read of a request.
const maxBody = 1 << 20

// handle serves every request. Faults and gates do not apply to the control paths.
func (em *Emulator) handle(w http.ResponseWriter, r *http.Request) {
	em.handling.RLock()
	defer em.handling.RUnlock()
	if em.closed {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Date", em.atlas.now().UTC().Format(http.TimeFormat)) // net/http has the real time otherwise
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil && !errors.As(err, new(*http.MaxBytesError)) {
		panic(http.ErrAbortHandler) // the client left
	}
	if strings.HasPrefix(r.URL.Path, controlPath+"/") {
		em.control(r, body).write(w)
		return
	}
	rt := routeFor(r)
	if err != nil {
		rt = fixed(detail(http.StatusRequestEntityTooLarge, "Request body is too large."))
	}
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
	if f.HeaderBytes > 0 {
		header.Set("X-Padding", strings.Repeat("x", f.HeaderBytes))
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

type connectionKey struct{}

// withConnection adds the connection to the context of its requests, so that a fault can break it.
func withConnection(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, c)
}
