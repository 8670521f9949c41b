package listen

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
)

// peer is both ends of an HTTP/2 connection, of which the server's goes through a Conn.
type peer struct {
	t      *testing.T
	conn   *Conn
	server *http2.Framer
	client *http2.Framer
	in     *bytes.Buffer // what the server has yet to read
}

// bufferConn reads from a buffer, and throws away what is written.
type bufferConn struct {
	net.Conn
	in     *bytes.Buffer
	closed bool
}

func (c *bufferConn) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c *bufferConn) Write(p []byte) (int, error) { return len(p), nil }
func (c *bufferConn) RemoteAddr() net.Addr        { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)} }
func (c *bufferConn) Close() error {
	c.closed = true
	return nil
}

func connect(t *testing.T, limits Limits) *peer {
	t.Helper()
	in := &bytes.Buffer{}
	conn := newConn(Track(nil, limits), &bufferConn{in: in})
	in.WriteString(http2.ClientPreface)
	p := &peer{t: t, conn: conn, in: in, client: http2.NewFramer(in, nil), server: http2.NewFramer(conn, nil)}
	p.read()
	return p
}

// read has the server read what the client has written, a few bytes at a time.
func (p *peer) read() {
	for p.in.Len() > 0 {
		if _, err := p.conn.Read(make([]byte, 7)); err != nil {
			return
		}
	}
}

// open has the client begin streams.
func (p *peer) open(ids ...uint32) {
	for _, id := range ids {
		_ = p.client.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte("block"), EndHeaders: true})
	}
	p.read()
}

func (p *peer) wants(places int) {
	p.t.Helper()
	if got := p.conn.Waiting(); got != places {
		p.t.Errorf("the connection takes %d places, want %d", got, places)
	}
}

func (p *peer) closed() bool { return p.conn.socket.Conn.(*bufferConn).closed }

// TestRequestsByFrames: a request waits from its first frame until its answer is written, or either
// side resets it.
func TestRequestsByFrames(t *testing.T) {
	all := NewRequests(100)
	p := connect(t, Limits{Requests: all})
	_ = p.server.WriteSettings() // before anything else, as both libraries do
	p.open(1, 3, 5, 7, 9)
	p.wants(5)
	p.open(3) // trailers
	p.wants(5)
	_ = p.server.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("block"), EndHeaders: true})
	p.wants(5)
	_ = p.server.WriteData(1, false, []byte("some"))
	p.wants(5)
	_ = p.server.WriteData(1, true, nil)
	p.wants(4)
	_ = p.server.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: []byte("trailers only"), EndHeaders: true, EndStream: true})
	_ = p.server.WriteRSTStream(5, http2.ErrCodeRefusedStream)
	p.wants(2)
	_ = p.client.WriteRSTStream(7, http2.ErrCodeCancel)
	p.read()
	p.wants(1)
	_ = p.server.WriteData(7, true, nil) // it was on its way
	p.wants(1)
	_ = p.client.WriteData(9, false, make([]byte, 40<<10)) // two more places
	p.read()
	p.wants(3)
	p.conn.StartWork()
	p.wants(2)
	p.conn.EndWork()
	_ = p.server.WriteData(9, true, nil)
	p.wants(0)
	if all.Waiting() != 0 {
		t.Errorf("%d requests wait in all", all.Waiting())
	}
}

// TestRequestsOfHTTP1: a request without frames waits from its first byte until it is answered, and
// takes places for its size and its lines. The connection that takes most of them is closed.
func TestRequestsOfHTTP1(t *testing.T) {
	in := &bytes.Buffer{}
	conn := newConn(Track(nil, Limits{Requests: NewRequests(10)}), &bufferConn{in: in})
	p := &peer{t: t, conn: conn, in: in}
	send := func(s string) {
		in.WriteString(s)
		p.read()
	}
	for range 2 { // on one connection
		send("PRI /v1 HTTP/1.1\r\nHost: x\r\n\r\n\x00\x00\x00\x01\x04\x00\x00\x00\x01")
		p.wants(1)
		send(strings.Repeat("x", 32<<10))
		p.wants(3)
		send(strings.Repeat("a:\n", 256)) // 32 KiB of header fields
		p.wants(5)
		_, _ = io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n")
		p.wants(0)
	}
	in.WriteString("POST / HTTP/1.1\r\n" + strings.Repeat("a:\n", 2<<10))
	if _, _ = conn.Read(make([]byte, in.Len())); !p.closed() {
		t.Error("the connection is open")
	}
}

// TestShare: greedy connections share the places, and another finds one.
func TestShare(t *testing.T) {
	all := NewRequests(120)
	var greedy []*peer
	for range 3 {
		greedy = append(greedy, connect(t, Limits{Requests: all}))
	}
	admitted := make([]int, len(greedy))
	for i := range uint32(50) {
		for k, p := range greedy {
			id := 2*i + 1
			p.open(id)
			if p.conn.Admit() {
				admitted[k]++
				continue
			}
			_ = p.server.WriteRSTStream(id, http2.ErrCodeRefusedStream)
		}
	}
	for k, n := range admitted {
		if n < 28 || n > 32 { // a quarter, as there are three
			t.Errorf("connection %d had %d requests admitted, want about 30", k, n)
		}
	}
	other := connect(t, Limits{Requests: all})
	other.open(1)
	if !other.conn.Admit() {
		t.Errorf("another connection is not admitted with %d of 120 places taken", all.Waiting())
	}
}

// TestFewAlways: a connection with a request or two is admitted even if others do not read that
// they are refused.
func TestFewAlways(t *testing.T) {
	all := NewRequests(20)
	deaf := connect(t, Limits{Requests: all})
	for i := range uint32(25) {
		deaf.open(2*i + 1)
	}
	if deaf.conn.Admit() {
		t.Error("a connection with 25 of 20 places is admitted")
	}
	other := connect(t, Limits{Requests: all})
	other.open(1)
	if !other.conn.Admit() {
		t.Error("a connection with one request is not admitted")
	}
}

// TestMakeRoom: the connection with the most requests ends if those beyond the limit are not
// refused, and its places are free a while later.
func TestMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := NewRequests(20)
		var reasons []string
		limits := Limits{Requests: all, Refused: func(limit string, _ net.Addr) { reasons = append(reasons, limit) }}
		some, most := connect(t, limits), connect(t, limits)
		some.open(1, 3, 5, 7, 9, 11, 13, 15, 17, 19)
		most.open(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 33, 35, 37, 39)
		if most.closed() || some.closed() {
			t.Fatalf("a connection ended with %d of 20 places taken", all.Waiting())
		}
		some.open(21)
		if !most.closed() || some.closed() {
			t.Errorf("the connection with most ended: %v, the other: %v", most.closed(), some.closed())
		}
		if len(reasons) != 1 || reasons[0] != RequestsLimit {
			t.Errorf("closed for %q", reasons)
		}
		if all.Waiting() != 31 {
			t.Errorf("%d places are taken at once", all.Waiting())
		}
		if _, err := most.conn.Read(make([]byte, 1)); err == nil {
			t.Error("the server can still read")
		}
		_ = some.conn.Close()
		innocent := connect(t, limits) // with all places taken by closed connections
		innocent.open(1, 3)
		if innocent.closed() {
			t.Error("a connection with two requests ended")
		}
		time.Sleep(lingering) //nolint:forbidigo // virtual time
		synctest.Wait()
		if all.Waiting() != 2 {
			t.Errorf("%d places are taken after a while, want 2", all.Waiting())
		}
	})
}

// TestMakeRoomForAnswers: requests that were in progress together have a second for their answers
// to be read; then connections with most of them end, as many as it takes.
func TestMakeRoomForAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := NewRequests(20)
		conns := []*peer{connect(t, Limits{Requests: all}), connect(t, Limits{Requests: all}), connect(t, Limits{Requests: all})}
		ids := []uint32{1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 33, 35, 37, 39}
		answer := func() {
			for _, p := range conns {
				for _, id := range ids {
					p.open(id)
					p.conn.StartWork()
				}
			}
			for _, p := range conns {
				for range ids {
					p.conn.EndWork()
				}
			}
			time.Sleep(900 * time.Millisecond) //nolint:forbidigo // virtual time
		}
		answer()
		for _, p := range conns {
			for _, id := range ids {
				_ = p.server.WriteRSTStream(id, http2.ErrCodeNo) // the end of an answer
			}
		}
		for i := range ids {
			ids[i] += 40
		}
		time.Sleep(200 * time.Millisecond) //nolint:forbidigo // virtual time
		synctest.Wait()
		for i, p := range conns {
			if p.closed() {
				t.Errorf("connection %d ended, whose answers were read in time", i)
			}
		}
		answer()
		time.Sleep(200 * time.Millisecond) //nolint:forbidigo // virtual time
		synctest.Wait()
		open := 0
		for _, p := range conns {
			if !p.closed() {
				open++
			}
		}
		if open != 1 {
			t.Errorf("%d of three connections with 20 unread answers each are open, want the one that fits", open)
		}
		time.Sleep(lingering) //nolint:forbidigo // virtual time, for its timers
	})
}

// TestEndOlder: a connection with a request that is too old ends, unless that one may last.
func TestEndOlder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := NewRequests(20)
		ended := 0
		old := connect(t, Limits{Requests: all, Refused: func(string, net.Addr) { ended++ }})
		held, young := connect(t, Limits{Requests: all}), connect(t, Limits{Requests: all})
		old.open(1)
		held.open(1)
		release, ok := held.conn.Hold(1)
		if !ok {
			t.Fatal("the first stream is not held")
		}
		if _, ok := held.conn.Hold(1); ok {
			t.Error("a second stream is held")
		}
		time.Sleep(time.Minute) //nolint:forbidigo // virtual time
		young.open(1)
		held.open(3)
		all.EndOlder(time.Now().Add(-30 * time.Second))
		if !old.closed() || held.closed() || young.closed() {
			t.Errorf("ended: the old %v, the held %v, the young %v", old.closed(), held.closed(), young.closed())
		}
		old.conn.end() // a second check that has chosen it
		if ended != 1 {
			t.Errorf("one connection counts %d times", ended)
		}
		release()
		all.EndOlder(time.Now().Add(-30 * time.Second))
		if !held.closed() {
			t.Error("a connection with a stream that is held no more goes on")
		}
		time.Sleep(lingering) //nolint:forbidigo // virtual time, for its timers
	})
}
