package server_test

import (
	"bytes"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// rawGRPC makes one plaintext gRPC call with exactly this :path and these headers, which a client library would mend or
// refuse, and returns its grpc-status, or what else the server did: "RST_STREAM" and its code, "GOAWAY", "closed".
func rawGRPC(t *testing.T, s *service, path string, headers ...string) string {
	t.Helper()
	return rawGRPCMessage(t, s, path, true, headers...)
}

// rawGRPCMessage is rawGRPC, but the message may stay away.
func rawGRPCMessage(t *testing.T, s *service, path string, message bool, headers ...string) string {
	t.Helper()
	framer := rawGRPCConn(t, s)
	writeRawHeaders(t, framer, 1, path, headers...)
	if message {
		if err := framer.WriteData(1, true, make([]byte, 5)); err != nil { // an empty one
			t.Fatal(err)
		}
	}
	for {
		frame, err := framer.ReadFrame()
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
		case *http2.PingFrame: // who does not answer these is taken for dead
			if !f.IsAck() {
				_ = framer.WritePing(true, f.Data)
			}
		case *http2.RSTStreamFrame:
			return "RST_STREAM " + f.ErrCode.String()
		case *http2.GoAwayFrame:
			return "GOAWAY"
		}
	}
}

// openRawStreams starts so many calls on one connection of their own, whose messages never come. The server has seen all of
// their headers when it returns, and the connection stays open until the test ends.
func openRawStreams(t *testing.T, s *service, n int, path string, headers ...string) {
	t.Helper()
	framer := rawGRPCConn(t, s)
	for i := range n {
		writeRawHeaders(t, framer, uint32(2*i+1), path, headers...)
	}
	last := [8]byte{'l', 'a', 's', 't'}
	if err := framer.WritePing(false, last); err != nil {
		t.Fatal(err)
	}
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if ping, ok := frame.(*http2.PingFrame); ok && ping.IsAck() && ping.Data == last {
			return
		}
	}
}

// rawGRPCConn is an HTTP/2 connection to the gRPC listener, in plaintext, that is closed when the test ends.
func rawGRPCConn(t *testing.T, s *service) *http2.Framer {
	t.Helper()
	conn, err := net.Dial("tcp", s.GRPCAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return framer
}

func writeRawHeaders(t *testing.T, framer *http2.Framer, stream uint32, path string, headers ...string) {
	t.Helper()
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	fields := append([]string{":method", "POST", ":scheme", "http", ":authority", "x", ":path", path, "content-type", "application/grpc", "te", "trailers"}, headers...)
	for i := 0; i < len(fields); i += 2 {
		// Not indexed, so that each block of a connection can have an encoder of its own.
		if err := encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1], Sensitive: true}); err != nil {
			t.Fatal(err)
		}
	}
	if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
}
