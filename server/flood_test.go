package server_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// listener is what a hostile peer connects to.
type listener string

const (
	grpcListener listener = "gRPC"
	restListener listener = "REST"
)

func (s *service) addr(l listener) string {
	if l == grpcListener {
		return s.GRPCAddr().String()
	}
	return s.HTTPAddr().String()
}

// hostile is a peer that writes what no decent client would.
type hostile struct {
	net.Conn
	out     *bufio.Writer
	framer  *http2.Framer
	rest    bool
	block   bytes.Buffer
	encoder *hpack.Encoder
}

// connect opens a connection that is closed when the test ends. With protocols, it is one of TLS, if the service has TLS.
func (s *service) connect(t *testing.T, l listener, protocols ...string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr(l))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if s.mode == plaintext || len(protocols) == 0 {
		return conn
	}
	cfg := s.certs.clientConfig(s.mode)
	cfg.ServerName, cfg.NextProtos = "localhost", protocols
	secured := tls.Client(conn, cfg)
	if err := secured.HandshakeContext(testContext(t)); err != nil {
		t.Fatal(err)
	}
	return secured
}

// hostile opens an HTTP/2 connection. What the server sends is read only if reads is true.
func (s *service) hostile(t *testing.T, l listener, reads bool, settings ...http2.Setting) *hostile {
	t.Helper()
	h := &hostile{Conn: s.connect(t, l, "h2"), rest: l == restListener}
	h.out = bufio.NewWriterSize(h.Conn, 16<<10)
	h.framer = http2.NewFramer(h.out, h.Conn)
	h.framer.AllowIllegalWrites = true
	h.encoder = hpack.NewEncoder(&h.block)
	_, _ = h.out.WriteString(http2.ClientPreface)
	_ = h.framer.WriteSettings(settings...)
	if err := h.out.Flush(); err != nil {
		t.Fatal(err)
	}
	if reads {
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				if _, err := h.framer.ReadFrame(); err != nil {
					return
				}
			}
		})
		t.Cleanup(func() {
			_ = h.Close()
			wg.Wait()
		})
	}
	return h
}

// headers are the block of a create.
func (h *hostile) headers(jwt string, extra ...string) []byte {
	h.block.Reset()
	fields := []string{":method", "POST", ":scheme", "http", ":authority", "localhost", ":path", createMethod, "content-type", "application/grpc", "te", "trailers"}
	if h.rest {
		fields = []string{":method", "POST", ":scheme", "https", ":authority", "localhost", ":path", "/v1/ephemeral-token"}
	}
	fields = append(append(fields, "authorization", "JWT "+jwt), extra...)
	for i := 0; i < len(fields); i += 2 {
		_ = h.encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1], Sensitive: true})
	}
	return h.block.Bytes()
}

// open writes the headers of a create on a stream.
func (h *hostile) open(stream uint32, jwt string, extra ...string) error {
	return h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: h.headers(jwt, extra...), EndHeaders: true})
}

// call writes a whole create on a stream.
func (h *hostile) call(stream uint32, jwt string) error {
	if err := h.open(stream, jwt); err != nil {
		return err
	}
	message := make([]byte, 5) // an empty one
	if h.rest {
		message = nil
	}
	return h.framer.WriteData(stream, true, message)
}

// flood writes with frame, again and again, until the server has ended the connection, takes nothing for a second, or has had
// enough: n times. It returns how often.
func (h *hostile) flood(n int, frame func(i int) error) int {
	for i := range n {
		if i%64 == 0 {
			_ = h.SetWriteDeadline(time.Now().Add(time.Second))
		}
		if frame(i) != nil {
			return i
		}
	}
	_ = h.out.Flush()
	return n
}

// awaitEnd waits until the server ends a connection, which may take longer than it should where the machine is busy.
func awaitEnd(t *testing.T, conn net.Conn, what string) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	buffer := make([]byte, 4<<10)
	for {
		if _, err := conn.Read(buffer); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: the connection is still open", what)
			}
			return
		}
	}
}

// awaitConns waits until so many connections are open on a listener, which may take longer than it should where the machine is
// busy.
func (s *service) awaitConns(t *testing.T, l listener, want int) {
	t.Helper()
	name := map[listener]string{grpcListener: "gRPC", restListener: "HTTP"}[l]
	line := fmt.Sprintf("\ntokend_connections_open{listener=%q} %d\n", name, want)
	for range 300 {
		if _, metrics := s.get(t, "/metrics"); strings.Contains(metrics, line) {
			return
		}
		<-time.After(100 * time.Millisecond)
	}
	t.Errorf("in vain: %s", strings.TrimSpace(line))
}

// footprint is what this process, which has both ends of each connection, takes.
type footprint struct {
	heap       int64
	goroutines int
}

func measureFootprint() footprint {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return footprint{int64(stats.HeapAlloc), runtime.NumGoroutine()}
}

// checkGrowth fails the test if more was taken since than a flood may cost, once what it has begun has ended.
func (f footprint) checkGrowth(t *testing.T, mostHeap int64, mostGoroutines int) {
	t.Helper()
	eventually(t, func() bool { return runtime.NumGoroutine()-f.goroutines <= mostGoroutines }, "goroutines of the flood are left")
	if grown := measureFootprint().heap - f.heap; grown > mostHeap {
		t.Errorf("%d KiB more of memory are in use, want at most %d", grown>>10, mostHeap>>10)
	}
}

// goodCalls makes calls over both transports until stop, one after another, each of which has to go well.
func (s *service) goodCalls(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for name, c := range s.callers(t) {
		wg.Go(func() {
			for ctx.Err() == nil {
				if got := c.call(testContext(t), create, credential(s.atlas)...); got.Token == "" {
					t.Errorf("%s: a good call failed: %v %s %s", name, got.Code, got.Reason, got.Message)
					return
				}
				select {
				case <-time.After(50 * time.Millisecond): // ten to twenty a second, as a decent client's
				case <-ctx.Done():
				}
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
	}
}

// floodModes are where HTTP/2 is spoken.
var floodModes = []struct {
	listener listener
	mode     security
}{{grpcListener, plaintext}, {grpcListener, serverTLS}, {restListener, serverTLS}, {restListener, plaintext}}
