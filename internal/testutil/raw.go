package testutil

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// RawHTTP writes a request to the REST listener and reads one response.
func RawHTTP(t *testing.T, s *Service, request string) *http.Response {
	t.Helper()
	conn, err := s.DialContext(t.Context(), "tcp", s.HTTPAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if s.Mode != Plaintext {
		cfg := s.Certs.ClientConfig(s.Mode)
		cfg.ServerName = "localhost"
		conn = tls.Client(conn, cfg)
	}
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// rawCodec sends bytes unchanged, so that a test can send malformed messages.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (rawCodec) Unmarshal(mem.BufferSlice, any) error { return nil }

var _ encoding.CodecV2 = rawCodec{}

// Raw calls a method with bytes that need not be a valid message.
func (c GRPCCaller) Raw(ctx context.Context, conn *grpc.ClientConn, method string, message []byte, headers ...string) Outcome {
	ctx = metadata.AppendToOutgoingContext(ctx, headers...)
	var header, trailer metadata.MD
	var resp []byte
	err := conn.Invoke(ctx, method, message, &resp, grpc.ForceCodecV2(rawCodec{}), grpc.Header(&header), grpc.Trailer(&trailer))
	out := Outcome{Header: metadata.Join(header, trailer), Early: header}
	out.setStatus(status.Convert(err))
	return out
}

// CreateMethod is the full name of CreateToken.
const CreateMethod = ephemeraltokenv1.EphemeralTokenService_CreateToken_FullMethodName

// Listener is one of the two listeners for calls.
type Listener string

// The two listeners.
const (
	GRPC Listener = "gRPC"
	REST Listener = "REST"
)

// Addr returns the address of a listener.
func (s *Service) Addr(l Listener) string {
	if l == GRPC {
		return s.GRPCAddr().String()
	}
	return s.HTTPAddr().String()
}

// RawHTTP2 is a peer that writes HTTP/2 frames directly.
type RawHTTP2 struct {
	net.Conn
	out     *bufio.Writer
	Framer  *http2.Framer
	rest    bool
	Block   bytes.Buffer
	encoder *hpack.Encoder
}

// Dial opens a connection that is closed when the test ends. With protocols it uses TLS if the
// service does.
func (s *Service) Dial(t *testing.T, l Listener, protocols ...string) net.Conn {
	t.Helper()
	conn, err := s.DialContext(t.Context(), "tcp", s.Addr(l))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if s.Mode == Plaintext || len(protocols) == 0 {
		return conn
	}
	cfg := s.Certs.ClientConfig(s.Mode)
	cfg.ServerName, cfg.NextProtos = "localhost", protocols
	secured := tls.Client(conn, cfg)
	if err := secured.HandshakeContext(Context(t)); err != nil {
		t.Fatal(err)
	}
	return secured
}

// RawHTTP2 opens an HTTP/2 connection. With reads, what the server sends is read and discarded.
func (s *Service) RawHTTP2(t *testing.T, l Listener, reads bool, settings ...http2.Setting) *RawHTTP2 {
	t.Helper()
	h := &RawHTTP2{Conn: s.Dial(t, l, "h2"), rest: l == REST}
	h.out = bufio.NewWriterSize(h.Conn, 16<<10)
	h.Framer = http2.NewFramer(h.out, h.Conn)
	h.Framer.AllowIllegalWrites = true
	h.encoder = hpack.NewEncoder(&h.Block)
	_, _ = h.out.WriteString(http2.ClientPreface)
	_ = h.Framer.WriteSettings(settings...)
	if err := h.out.Flush(); err != nil {
		t.Fatal(err)
	}
	if reads {
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				if _, err := h.Framer.ReadFrame(); err != nil {
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

// Headers returns the header block of a create.
func (h *RawHTTP2) Headers(jwt string, extra ...string) []byte {
	path := CreateMethod
	if h.rest {
		path = ServicePath
	}
	return h.headersOf(path, append([]string{"authorization", "JWT " + jwt}, extra...)...)
}

// headersOf returns the header block of a request for exactly this :path.
func (h *RawHTTP2) headersOf(path string, headers ...string) []byte {
	h.Block.Reset()
	fields := []string{":method", "POST", ":scheme", "http", ":authority", "localhost", ":path", path}
	if h.rest {
		fields[3] = "https"
	} else {
		fields = append(fields, "content-type", "application/grpc", "te", "trailers")
	}
	fields = append(fields, headers...)
	for i := 0; i < len(fields); i += 2 {
		_ = h.encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1], Sensitive: true})
	}
	return h.Block.Bytes()
}

// Open writes the headers of a create on a stream.
func (h *RawHTTP2) Open(stream uint32, jwt string, extra ...string) error {
	return h.Framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: h.Headers(jwt, extra...), EndHeaders: true})
}

// Call writes a whole create on a stream.
func (h *RawHTTP2) Call(stream uint32, jwt string) error {
	if err := h.Open(stream, jwt); err != nil {
		return err
	}
	message := make([]byte, 5) // an empty one
	if h.rest {
		message = nil
	}
	return h.Framer.WriteData(stream, true, message)
}

// Flush sends what has been written.
func (h *RawHTTP2) Flush() error { return h.out.Flush() }

// Flood calls frame n times, or until the server closes the connection or reads nothing for a
// second. It returns the number of frames.
func (h *RawHTTP2) Flood(n int, frame func(i int) error) int {
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

// RawGRPC makes one plaintext gRPC call with exactly this :path and these headers, which a client
// library would correct or refuse. It returns the grpc-status, or "RST_STREAM" and its code,
// "GOAWAY" or "closed".
func RawGRPC(t *testing.T, s *Service, path string, headers ...string) string {
	t.Helper()
	return RawGRPCMessage(t, s, path, true, headers...)
}

// RawGRPCMessage is RawGRPC with or without the message.
func RawGRPCMessage(t *testing.T, s *Service, path string, message bool, headers ...string) string {
	t.Helper()
	h := rawGRPC(t, s)
	h.begin(1, path, headers...)
	if message {
		_ = h.Framer.WriteData(1, true, make([]byte, 5)) // an empty one
	}
	h.flush(t)
	for {
		frame, err := h.Framer.ReadFrame()
		if err != nil {
			return "closed"
		}
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			for _, field := range f.Fields {
				if field.Name == "grpc-status" {
					return field.Value
				}
			}
		case *http2.PingFrame: // keepalive
			if !f.IsAck() {
				_ = h.Framer.WritePing(true, f.Data)
				h.flush(t)
			}
		case *http2.RSTStreamFrame:
			return "RST_STREAM " + f.ErrCode.String()
		case *http2.GoAwayFrame:
			return "GOAWAY"
		}
	}
}

// OpenRawStreams starts n calls without messages on a new connection. The server has read their
// headers when it returns, and the connection stays open until the test ends.
func OpenRawStreams(t *testing.T, s *Service, n int, path string, headers ...string) {
	t.Helper()
	h := rawGRPC(t, s)
	for i := range n {
		h.begin(uint32(2*i+1), path, headers...)
	}
	last := [8]byte{'l', 'a', 's', 't'}
	_ = h.Framer.WritePing(false, last)
	h.flush(t)
	for {
		frame, err := h.Framer.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if ping, ok := frame.(*http2.PingFrame); ok && ping.IsAck() && ping.Data == last {
			return
		}
	}
}

// rawGRPC opens a plaintext HTTP/2 connection to the gRPC listener until the test ends.
func rawGRPC(t *testing.T, s *Service) *RawHTTP2 {
	t.Helper()
	h := s.RawHTTP2(t, GRPC, false)
	_ = h.SetDeadline(time.Now().Add(20 * time.Second))
	h.Framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return h
}

// begin writes the headers of a request. The connection reports errors when it is flushed.
func (h *RawHTTP2) begin(stream uint32, path string, headers ...string) {
	_ = h.Framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: h.headersOf(path, headers...), EndHeaders: true})
}

func (h *RawHTTP2) flush(t *testing.T) {
	t.Helper()
	if err := h.out.Flush(); err != nil {
		t.Fatal(err)
	}
}
