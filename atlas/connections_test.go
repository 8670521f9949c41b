package atlas

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestConnectionIsReused checks that sequential calls with small answers use one connection.
func TestConnectionIsReused(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		status := http.StatusCreated
		conns, config := newHTTPServer(t, http2, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			if status != 204 {
				_ = http.NewResponseController(w).Flush() // no Content-Length
				_, _ = io.WriteString(w, `{"token":"t","detail":"`+strings.Repeat("x", 5000)+`"}`)
			}
		})
		c := newTestClient(t, config)
		c.drainTime = time.Minute // for a busy machine
		for _, status = range []int{201, 200, 202, 204, 302, 400, 401, 429, 500, 503, 201} {
			_, err := c.CreateEphemeralToken(t.Context(), plantedJWT)
			outcomeOf(t, OpCreate, err)
			err = c.DeleteEphemeralToken(t.Context(), plantedJWT)
			outcomeOf(t, OpDelete, err)
		}
		if n := conns.Load(); n != 1 {
			t.Errorf("HTTP/2 %v: %d connections, want 1", http2, n)
		}
	}
}

// TestConcurrentCalls checks that calls share a connection over HTTP/2, and that over HTTP/1.1 each
// has its own, which is kept.
func TestConcurrentCalls(t *testing.T) {
	const calls = 40
	for _, tc := range []struct {
		http2 bool
		want  int32
	}{{true, 1}, {false, calls}} {
		arrived, proceed := make(chan struct{}, 2*calls), make(chan struct{}, calls)
		conns, config := newHTTPServer(t, tc.http2, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				arrived <- struct{}{}
				select {
				case <-proceed:
				case <-r.Context().Done(): // the call has failed
				}
			}
			answerToken(w)
		})
		config.Timeout = time.Minute // for a busy machine
		c := newTestClient(t, config)
		if err := c.DeleteEphemeralToken(t.Context(), plantedJWT); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			var wg sync.WaitGroup
			for range calls {
				wg.Go(func() {
					if token, err := c.CreateEphemeralToken(t.Context(), plantedJWT); err != nil || token != plantedToken {
						t.Errorf("got %q, %v", string(token), err)
						arrived <- struct{}{} // so that the others do not wait for it
					}
				})
			}
			for range calls { // all are in progress at once
				<-arrived
			}
			for range calls {
				proceed <- struct{}{}
			}
			wg.Wait()
		}
		if n := conns.Load(); n != tc.want {
			t.Errorf("HTTP/2 %v: %d connections, want %d", tc.http2, n, tc.want)
		}
	}
}

// TestMaxConns checks that a call without a free connection waits, and counts as not sent until it
// gets one.
func TestMaxConns(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	conns, config := newHTTPServer(t, false, func(w http.ResponseWriter, _ *http.Request) {
		arrived <- struct{}{}
		<-release
		answerToken(w)
	})
	config.MaxConns = 2
	c := newTestClient(t, config)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if _, err := c.CreateEphemeralToken(t.Context(), plantedJWT); err != nil {
				t.Error(err)
			}
		})
		<-arrived
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := c.DeleteEphemeralToken(ctx, plantedJWT)
	if got, want := outcomeOf(t, OpDelete, err), (outcome{Kind: KindCanceled}); got != want {
		t.Errorf("got %+v, want %+v: %v", got, want, err)
	}
	close(release)
	wg.Wait()
	if n := conns.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

// Frame types of HTTP/2 (RFC 9113 section 6).
const (
	frameHeaders   = 0x1
	frameRSTStream = 0x3
	frameSettings  = 0x4
	framePing      = 0x6
	frameGoAway    = 0x7
)

// newRawHTTP2 serves HTTP/2 frame by frame and calls handle with the number of each request and its
// stream.
func newRawHTTP2(t *testing.T, handle func(f framer, request int, stream uint32)) (*rawServer, *atomic.Int32, Config) {
	t.Helper()
	cert, pool := goodCertificate()
	requests := new(atomic.Int32)
	s := newRawServer(t, func(conn net.Conn) {
		f := framer{tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}})}
		if _, err := io.ReadFull(f, make([]byte, len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))); err != nil {
			return
		}
		f.write(frameSettings, 0, 0, nil)
		for {
			var head [9]byte
			if _, err := io.ReadFull(f, head[:]); err != nil {
				return
			}
			payload := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
			if _, err := io.ReadFull(f, payload); err != nil {
				return
			}
			if head[3] == frameHeaders {
				handle(f, int(requests.Add(1)), binary.BigEndian.Uint32(head[5:]))
			}
		}
	})
	return s, requests, Config{BaseURL: "https://" + s.addr, RootCAs: pool}
}

type framer struct{ *tls.Conn }

func (f framer) write(kind, flags byte, stream uint32, payload []byte) {
	frame := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags}
	frame = binary.BigEndian.AppendUint32(frame, stream)
	_, _ = f.Write(append(frame, payload...))
}

func (f framer) reset(stream, code uint32) {
	f.write(frameRSTStream, 0, stream, binary.BigEndian.AppendUint32(nil, code))
}

// answer204 is a header block of one octet: entry 9 of HPACK's static table, ":status: 204" (RFC
// 7541 appendix A).
func (f framer) answer204(stream uint32) {
	const endStream, endHeaders = 0x1, 0x4
	f.write(frameHeaders, endStream|endHeaders, stream, []byte{0x89})
}

// A DELETE is repeated only where HTTP/2 guarantees that it was not processed, and net/http lets us
// see that. A create may be repeated.
func TestHTTP2Repeats(t *testing.T) {
	const protocolError, internalError, refusedStream = 0x1, 0x2, 0x7
	unknown := outcome{KindUnreachable, 0, 0, true}
	for _, tc := range []struct {
		name   string
		first  func(f framer, stream uint32)
		delete outcome
		posts  int32 // requests of a create
	}{
		{"refused stream", func(f framer, stream uint32) { f.reset(stream, refusedStream) }, outcome{}, 2},
		{"protocol error", func(f framer, stream uint32) { f.reset(stream, protocolError) }, unknown, 2},
		{"internal error", func(f framer, stream uint32) { f.reset(stream, internalError) }, unknown, 1},
		{
			"going away before this stream",
			func(f framer, _ uint32) { f.write(frameGoAway, 0, 0, make([]byte, 8)) },
			unknown, 2,
		},
		{
			"going away after this stream",
			func(f framer, stream uint32) {
				f.write(frameGoAway, 0, 0, append(binary.BigEndian.AppendUint32(nil, stream), "\x00\x00\x00\x00planted"...))
				f.Close()
			},
			unknown, 1,
		},
		{"connection lost", func(f framer, _ uint32) { reset(f.Conn) }, unknown, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, requests, config := newRawHTTP2(t, func(f framer, request int, stream uint32) {
				if request == 1 {
					tc.first(f, stream)
					return
				}
				f.answer204(stream)
			})
			err := newTestClient(t, config).DeleteEphemeralToken(t.Context(), plantedJWT)
			if got := outcomeOf(t, OpDelete, err); got != tc.delete {
				t.Errorf("delete: got %+v, want %+v: %v", got, tc.delete, err)
			}
			want := int32(1)
			if tc.delete == (outcome{}) {
				want = 2
			}
			if n := requests.Load(); n != want {
				t.Errorf("Atlas got %d DELETEs, want %d", n, want)
			}

			requests.Store(0)
			_, err = newTestClient(t, config).CreateEphemeralToken(t.Context(), plantedJWT)
			create := unknown
			if tc.posts == 2 {
				create = outcome{KindInvalidResponse, 204, 0, true} // what the second request is answered
			}
			if got := outcomeOf(t, OpCreate, err); got != create {
				t.Errorf("create: got %+v, want %+v: %v", got, create, err)
			}
			if n := requests.Load(); n != tc.posts {
				t.Errorf("Atlas got %d POSTs, want %d", n, tc.posts)
			}
		})
	}
}

// TestHTTP2DeadConnection checks that a ping detects a dead connection, and that it is not used
// again.
func TestHTTP2DeadConnection(t *testing.T) {
	s, _, config := newRawHTTP2(t, func(f framer, request int, stream uint32) {
		if request == 1 {
			return // and no answer to the ping either
		}
		f.answer204(stream)
	})
	c := newTestClient(t, config)
	if c.transport.Load().HTTP2.SendPingTimeout+c.transport.Load().HTTP2.PingTimeout >= defaultTimeout {
		t.Errorf("a dead connection is not noticed within %v", defaultTimeout)
	}
	c.transport.Load().HTTP2.SendPingTimeout = 50 * time.Millisecond
	c.transport.Load().HTTP2.PingTimeout = 50 * time.Millisecond

	err := c.DeleteEphemeralToken(t.Context(), plantedJWT)
	if got, want := outcomeOf(t, OpDelete, err), (outcome{KindUnreachable, 0, 0, true}); got != want {
		t.Errorf("got %+v, want %+v: %v", got, want, err)
	}
	if err := c.DeleteEphemeralToken(t.Context(), plantedJWT); err != nil {
		t.Error(err)
	}
	if n := s.conns.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

// Frames that ask for an answer are no reason to send without bound, nor to wait beyond the cap.
func TestHTTP2FrameFlood(t *testing.T) {
	for name, kind := range map[string]byte{"SETTINGS": frameSettings, "PING": framePing} {
		t.Run(name, func(t *testing.T) {
			_, _, config := newRawHTTP2(t, func(f framer, _ int, _ uint32) {
				var payload []byte
				if kind == framePing {
					payload = make([]byte, 8)
				}
				for range 20000 {
					f.write(kind, 0, 0, payload)
				}
			})
			config.Timeout = 300 * time.Millisecond
			err := newTestClient(t, config).DeleteEphemeralToken(t.Context(), plantedJWT)
			if got := outcomeOf(t, OpDelete, err); got.Kind != KindTimeout && got.Kind != KindUnreachable || !got.Sent {
				t.Errorf("got %+v: %v", got, err)
			}
		})
	}
}

func TestClockAhead(t *testing.T) {
	at := func(seconds float64) time.Time { return time.Unix(1_700_000_000, int64(seconds*1e9)) }
	for _, tc := range []struct{ date, before, after, want float64 }{
		{100, 100.2, 100.4, 0},  // cut off to the second
		{100, 99.7, 100.1, 0},   // the second began meanwhile
		{100, 101.5, 102, -0.5}, // 100.999 at the latest
		{105, 100, 102, 3},
		{100, 100, 130, 0}, // at some time between
	} {
		got := clockAhead(at(tc.date), at(tc.before), at(tc.after))
		if want := time.Duration(tc.want * 1e9); got.Round(time.Millisecond) != want {
			t.Errorf("%+v: got %v", tc, got)
		}
	}
}
