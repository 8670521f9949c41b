package listen

import (
	"bytes"
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Requests bounds the requests that wait for their clients, over all connections of several
// listeners: for the rest of a message, or for the client to read the answer. A request waits from
// its first frame until the last frame of its answer is written or either side resets it, except
// while the server works on it. Over HTTP/1 it waits from its first byte until the first of its
// answer.
//
// A connection may have as many requests waiting as there are places left (dynamic thresholds,
// Choudhury and Hahne, 1998). A single connection gets half, k greedy ones get 1/(k+1) each, and a
// connection with few requests always finds a place.
type Requests struct {
	limit    int64
	used     atomic.Int64
	leaving  atomic.Int64 // of used: places of connections that are closed already
	checking atomic.Bool  // a check by makeRoomLater is due

	mu    sync.Mutex
	conns map[*Conn]struct{} // guarded by mu: those whose protocol is known
}

// unit is how many bytes of a request count as another place.
const unit = 16 << 10

// maxUnanswered is how many streams of one connection may be open on the wire. grpc-go and net/http
// refuse those beyond 100, so a client with more does not read the refusals.
const maxUnanswered = 1000

// NewRequests returns Requests with limit places. Each request takes one, and another for every 16
// KiB of it that has arrived, with fieldBytes more for each header field.
func NewRequests(limit int) *Requests {
	return &Requests{limit: int64(limit), conns: make(map[*Conn]struct{})}
}

// Waiting returns how many places are taken.
func (r *Requests) Waiting() int { return int(r.used.Load()) }

// Limit returns how many places there are.
func (r *Requests) Limit() int { return int(r.limit) }

// pause delays reading while there are more requests than places, so that the server can refuse
// those that have arrived.
func (r *Requests) pause() {
	for i := 0; i < 5 && r.used.Load() > r.limit; i++ {
		time.Sleep(5 * time.Millisecond) //nolint:forbidigo // back pressure on one connection
	}
}

// most returns how many places may be taken before connections are closed for it. Only clients that
// do not read answers, or that send large messages, cause more.
func (r *Requests) most() int64 { return r.limit + r.limit/2 }

// makeRoom closes the connection with the most waiting requests, of several the one with the oldest
// request, if waiting is above most. It reports whether it closed one.
func (r *Requests) makeRoom(waiting int64) bool {
	if waiting <= r.most() {
		return false
	}
	r.mu.Lock()
	var worst *Conn
	most := int64(Few) // a connection with few requests is not to blame
	var since time.Time
	for c := range r.conns {
		used, oldest := c.requests.used.Load(), c.requests.oldest()
		if used > most || worst != nil && used == most && oldest.Before(since) {
			worst, most, since = c, used, oldest
		}
	}
	r.mu.Unlock()
	if worst == nil {
		return false
	}
	worst.end()
	return true
}

// makeRoomLater makes room for requests that have just been answered, unless their clients read
// the answers within a second. There may be many at once: they did not wait while in progress.
func (r *Requests) makeRoomLater() {
	if r.used.Load() <= r.most() || !r.checking.CompareAndSwap(false, true) {
		return
	}
	time.AfterFunc(time.Second, func() {
		r.checking.Store(false)
		for r.makeRoom(r.used.Load() - r.leaving.Load()) {
		}
	})
}

// EndOlder closes the connections with a request that began before t and is still open, except for
// streams counted by Hold.
func (r *Requests) EndOlder(t time.Time) {
	r.mu.Lock()
	var late []*Conn
	for c := range r.conns {
		if c.requests.before(t) > int(c.requests.held.Load()) {
			late = append(late, c)
		}
	}
	r.mu.Unlock()
	for _, c := range late {
		c.end()
	}
}

// end closes a connection because of its requests. Two checks may choose the same one.
func (c *Conn) end() {
	if c.abort() {
		c.listener.limits.refused(RequestsLimit, c.peerAddr())
	}
}

// Few is how many requests of a connection may always wait, however many wait in all.
const Few = 2

// Admit reports whether a request that has arrived is within the connection's share.
func (c *Conn) Admit() bool {
	all, own := c.requests.all, c.requests.used.Load()
	return all == nil || own <= Few || own+all.used.Load() <= all.limit+1
}

// Waiting returns how many places the connection takes.
func (c *Conn) Waiting() int { return int(c.requests.used.Load()) }

// StartWork marks a request as in progress: it does not wait for its client until EndWork is
// called.
func (c *Conn) StartWork() { c.requests.add(-1) }

// EndWork reverses StartWork: the server has answered the request, or has given up on it.
func (c *Conn) EndWork() {
	c.requests.add(1)
	if all := c.requests.all; all != nil {
		all.makeRoomLater()
	}
}

// Hold exempts one of the connection's streams from EndOlder until release is called. It reports
// false if most streams of the connection are exempt already.
func (c *Conn) Hold(most int) (release func(), ok bool) {
	release = func() { c.requests.held.Add(-1) }
	if int(c.requests.held.Add(1)) > most {
		release()
		return nil, false
	}
	return release, true
}

// openRequests are the requests of one connection.
type openRequests struct {
	conn   *Conn
	all    *Requests    // nil: they are not counted
	used   atomic.Int64 // places taken in all
	held   atomic.Int64 // streams exempt from EndOlder
	speaks atomic.Int32 // one of the protocols below
	match  int          // bytes of the preface that have arrived
	broken bool         // the client negotiated HTTP/2 and speaks another protocol

	in, out frames
	block   fields // of the header block that is arriving

	mu       sync.Mutex
	streams  []openStream // guarded by mu; by id, and so by age
	last     uint32       // guarded by mu; the highest id
	released bool         // guarded by mu
}

// The protocols of openRequests.speaks.
const (
	unknownProtocol int32 = iota // the client's preface, or another first line, has not arrived
	speaksHTTP2
	speaksOther
)

// textStream is the id of the one stream of an HTTP/1 connection. HTTP/2 has no such stream.
const textStream = 0

// openStream is a request.
type openStream struct {
	id    uint32
	since time.Time
	size  int
}

func (s openStream) cost() int64 { return 1 + int64(s.size/unit) }

// add takes places, or frees them if n is negative.
func (o *openRequests) add(n int64) {
	if o.all != nil {
		o.used.Add(n)
		o.all.used.Add(n)
	}
}

// received parses what the client has sent, and reports false if the connection is closed for it.
// Only one goroutine reads.
func (o *openRequests) received(p []byte) bool {
	if o.all == nil {
		return !o.broken
	}
	if o.speaks.Load() == speaksOther {
		return o.receivedText(p)
	}
	if rest := len(preface) - o.match; rest > 0 {
		n := min(rest, len(p))
		if string(p[:n]) != preface[o.match:o.match+n] {
			o.broken = o.conn.agreedHTTP2()
			o.register(speaksOther)
			return o.receivedText(p)
		}
		o.match += n
		if p = p[n:]; o.match < len(preface) {
			return true
		}
		o.register(speaksHTTP2)
	}
	o.in.each(p, o.receivedFrame, o.receivedPayload)
	return o.isOpen()
}

// receivedText counts what an HTTP/1 client has sent as one stream, until the server answers. Every
// line may be a header field.
func (o *openRequests) receivedText(p []byte) bool {
	if o.broken {
		return false
	}
	if len(p) > 0 {
		o.enlarge(frame{stream: textStream, length: len(p) + fieldBytes*bytes.Count(p, []byte("\n"))})
	}
	return o.isOpen()
}

func (o *openRequests) isOpen() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.released
}

// register adds the connection to all, unless it has been closed.
func (o *openRequests) register(protocol int32) {
	o.all.mu.Lock()
	defer o.all.mu.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.released {
		o.all.conns[o.conn] = struct{}{}
	}
	o.speaks.Store(protocol)
}

func (o *openRequests) receivedFrame(f frame) {
	if f.stream == 0 {
		return
	}
	if f.kind == frameRSTStream {
		o.close(f.stream)
		return
	}
	if f.kind == frameHeaders {
		o.block.begin(f.flags)
	}
	o.enlarge(f)
}

// receivedPayload charges for the fields of a header block, for which libraries need more memory
// than their bytes on the wire.
func (o *openRequests) receivedPayload(f frame, p []byte) {
	if f.kind == frameHeaders || f.kind == frameContinuation {
		f.kind, f.length = frameContinuation, fieldBytes*o.block.count(p)
		o.enlarge(f)
	}
}

func (o *openRequests) enlarge(f frame) {
	o.mu.Lock()
	grown, unanswered := o.grow(f), len(o.streams)
	o.mu.Unlock()
	switch {
	case grown == 0:
	case unanswered > maxUnanswered:
		o.conn.end()
	default:
		o.all.makeRoom(o.all.used.Load())
	}
}

// grow opens the stream of a frame, or adds the frame to its stream, and returns how many places
// that took. The caller holds mu.
func (o *openRequests) grow(f frame) int64 {
	if o.released {
		return 0
	}
	i, open := o.find(f.stream)
	before := int64(0)
	switch {
	case open:
		before = o.streams[i].cost()
	case f.stream == textStream, f.kind == frameHeaders && f.stream > o.last && f.stream%2 == 1:
		o.last = f.stream
		o.streams = append(o.streams, openStream{id: f.stream, since: time.Now()})
		i = len(o.streams) - 1
	default:
		return 0
	}
	o.streams[i].size += f.length
	grown := o.streams[i].cost() - before
	o.add(grown)
	return grown
}

// sent parses what the server has written. Before the client's preface there are no streams.
func (o *openRequests) sent(p []byte) {
	switch o.speaks.Load() {
	case unknownProtocol:
		return
	case speaksOther:
		o.close(textStream)
		return
	}
	o.out.each(p, func(f frame) {
		ended := f.flags&flagEndStream != 0 && (f.kind == frameData || f.kind == frameHeaders)
		if ended || f.kind == frameRSTStream {
			o.close(f.stream)
		}
	}, func(frame, []byte) {})
}

// close removes a stream, if it is open.
func (o *openRequests) close(id uint32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if i, open := o.find(id); open {
		o.add(-o.streams[i].cost())
		o.streams = slices.Delete(o.streams, i, i+1)
	}
}

// lingering is how long the requests of a closed connection still count. The server may still work
// on them, and a client could otherwise start more by reconnecting.
const lingering = time.Second

// release removes all streams of a closed connection, and reports whether it is the first call of
// release.
func (o *openRequests) release() (first bool) {
	if o.all == nil {
		return true
	}
	o.all.mu.Lock()
	delete(o.all.conns, o.conn)
	o.all.mu.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	left := int64(0)
	for _, s := range o.streams {
		left += s.cost()
	}
	if left > 0 {
		o.all.leaving.Add(left)
		time.AfterFunc(lingering, func() {
			o.add(-left)
			o.all.leaving.Add(-left)
		})
	}
	first = !o.released
	o.streams, o.released = nil, true
	return first
}

// find returns the index of an open stream. The caller holds mu.
func (o *openRequests) find(id uint32) (int, bool) {
	return slices.BinarySearchFunc(o.streams, id, func(s openStream, id uint32) int { return cmp.Compare(s.id, id) })
}

// oldest returns when the oldest open stream began.
func (o *openRequests) oldest() time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.streams) == 0 {
		return time.Now()
	}
	return o.streams[0].since
}

// before returns how many open streams began before t.
func (o *openRequests) before(t time.Time) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.IndexFunc(append(o.streams[:len(o.streams):len(o.streams)], openStream{since: t}),
		func(s openStream) bool { return !s.since.Before(t) })
}
