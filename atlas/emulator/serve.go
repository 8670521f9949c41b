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

// handle serves every request: the control paths plainly, Atlas's own with the
// faults and gates in force.
func (em *Emulator) handle(w http.ResponseWriter, r *http.Request) {
	if !em.handlers.enter() {
		panic(http.ErrAbortHandler)
	}
	defer em.handlers.leave()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil && !errors.As(err, new(*http.MaxBytesError)) {
		panic(http.ErrAbortHandler) // the client left
	}
	if strings.HasPrefix(r.URL.Path, controlPath+"/") {
		em.control(w, r, body)
		return
	}
	rt := routeFor(r)
	if err != nil {
		rt = fixed(detail(http.StatusRequestEntityTooLarge, "Request body is too large."))
	}
	answered := em.seen.arrived(rt.op, r, len(body))
	defer answered(0)
	p := em.faults.take(rt.op)
	a := em.perform(rt, r, body, p)
	(&sender{w: w, r: r, plan: p, answered: answered}).send(a)
}

// perform makes the answer: it waits where the gates and the plan say so, and
// has the operation take effect unless the plan keeps it from that.
func (em *Emulator) perform(rt route, r *http.Request, body []byte, p plan) answer {
	ctx := r.Context()
	check(em.gates.pass(ctx, rt.op, &em.gates.before))
	present := ctx
	if p.evenIfGone {
		present = context.WithoutCancel(ctx)
	}
	check(wait(present, p.before))
	var a answer
	if !p.decider.replaces() || p.decider.AfterEffect {
		a = rt.do(em.atlas, r, body)
	}
	check(em.gates.pass(ctx, rt.op, &em.gates.after))
	check(wait(ctx, p.after))
	return p.change(a, rt.success)
}

// change turns the genuine answer into the planned one. success is the status
// of the operation when all is well.
func (p plan) change(a answer, success int) answer {
	switch f := p.decider; {
	case f.Body != "":
		a = answer{status: success, contentType: "application/json", body: []byte(f.Body)}
	case f.Status >= 400:
		a = errorAnswer(f.Status, p.header)
	case f.Status >= 300:
		a = answer{}
	}
	a.status = cmp.Or(p.decider.Status, a.status)
	a.contentType = cmp.Or(p.decider.ContentType, a.contentType)
	header := http.Header{}
	maps.Copy(header, a.header)
	maps.Copy(header, p.header)
	if p.headerBytes > 0 {
		header.Set("X-Padding", strings.Repeat("x", p.headerBytes))
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

// withConnection keeps the connection within reach of its requests, so that a
// fault can break it.
func withConnection(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, c)
}
