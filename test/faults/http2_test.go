package faults

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// framedAtlas is an Atlas over HTTP/2 that is made frame by frame.
type framedAtlas struct {
	url      string
	roots    *x509.CertPool
	requests atomic.Int32
	open     atomic.Int32 // connections
	handle   func(c *framedConn, request int32, stream uint32)
}

// framedConn is one connection to it.
type framedConn struct {
	*http2.Framer
	conn *tls.Conn
}

func startFramedAtlas(t *testing.T, handle func(c *framedConn, request int32, stream uint32)) *framedAtlas {
	t.Helper()
	lender := httptest.NewTLSServer(nil) // of a certificate
	lender.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &framedAtlas{url: "https://" + listener.Addr().String(), roots: x509.NewCertPool(), handle: handle}
	a.roots.AddCert(lender.Certificate())
	ctx, stop := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
				defer conn.Close()
				a.open.Add(1)
				defer a.open.Add(-1)
				a.serve(tls.Server(conn, &tls.Config{Certificates: lender.TLS.Certificates, NextProtos: []string{"h2"}}))
			})
		}
	})
	t.Cleanup(func() {
		stop()
		_ = listener.Close()
		work.Wait()
	})
	return a
}

func (a *framedAtlas) serve(conn *tls.Conn) {
	if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	c := &framedConn{Framer: http2.NewFramer(conn, conn), conn: conn}
	if c.WriteSettings() != nil {
		return
	}
	for {
		frame, err := c.ReadFrame()
		if err != nil {
			return
		}
		switch f := frame.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = c.WriteSettingsAck()
			}
		case *http2.HeadersFrame:
			a.handle(c, a.requests.Add(1), f.StreamID)
		}
	}
}

// answer is a 201 with a token, which is a fit answer to a delete as well.
func (c *framedConn) answer(stream uint32) {
	var head bytes.Buffer
	encoder := hpack.NewEncoder(&head)
	for _, field := range [][2]string{{":status", "201"}, {"content-type", "application/json"}} {
		_ = encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]})
	}
	_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: head.Bytes(), EndHeaders: true})
	_ = c.WriteData(stream, true, []byte(`{"token":"t"}`))
}

// abort ends the connection with a TCP reset.
func (c *framedConn) abort() {
	_ = c.conn.NetConn().(*net.TCPConn).SetLinger(0)
	_ = c.conn.NetConn().Close()
}

// framedMatrix runs test once for each transport and operation, with an Atlas of its own.
func framedMatrix(t *testing.T, handle func(c *framedConn, request int32, stream uint32), test func(t *testing.T, a *framedAtlas, s *testutil.Service, call func() testutil.Outcome, op testutil.Operation), timeout ...time.Duration) {
	t.Helper()
	limit := append(timeout, 15*time.Second)[0]
	for _, op := range []testutil.Operation{testutil.Create, testutil.Delete} {
		for _, transport := range []string{"gRPC", "REST"} {
			t.Run(transport+"/"+string(op), func(t *testing.T) {
				a := startFramedAtlas(t, handle)
				s := testutil.Start(t, testutil.Plaintext, func(_ *server.Config, cfg *atlas.Config) {
					cfg.BaseURL, cfg.RootCAs, cfg.Timeout = a.url, a.roots, limit
				})
				jwt := testutil.Credential(s.Atlas)
				c := s.Callers(t)[transport]
				test(t, a, s, func() testutil.Outcome { return c.Call(testutil.Context(t), op, jwt...) }, op)
			})
		}
	}
}

// TestFault23Unprocessed: what HTTP/2 says was not processed is sent again, and a create whatever
// happened to it.
func TestFault23Unprocessed(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		first  func(c *framedConn, stream uint32)
		delete testutil.Want
	}{
		"refused stream": {func(c *framedConn, stream uint32) { _ = c.WriteRSTStream(stream, http2.ErrCodeRefusedStream) }, testutil.WantDeleted},
		"reset stream":   {func(c *framedConn, stream uint32) { _ = c.WriteRSTStream(stream, http2.ErrCodeInternal) }, testutil.WantUnknown},
		// It was not processed either, but net/http does not let that be told from a reset that
		// says nothing.
		"going away before it": {func(c *framedConn, _ uint32) { _ = c.WriteGoAway(0, http2.ErrCodeNo, nil) }, testutil.WantUnknown},
		"going away after it": {func(c *framedConn, stream uint32) {
			_ = c.WriteGoAway(stream, http2.ErrCodeNo, nil)
			c.abort()
		}, testutil.WantUnknown},
		"lost connection": {func(c *framedConn, _ uint32) { c.abort() }, testutil.WantUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			framedMatrix(t, func(c *framedConn, request int32, stream uint32) {
				if request == 1 {
					tc.first(c, stream)
					return
				}
				c.answer(stream)
			}, func(t *testing.T, a *framedAtlas, _ *testutil.Service, call func() testutil.Outcome, op testutil.Operation) {
				want, requests := testutil.WantCreated, int32(2)
				if op == testutil.Delete {
					if want = tc.delete; want.Code != codes.OK {
						requests = 1
					}
				}
				want.Check(t, call())
				if n := a.requests.Load(); n != requests {
					t.Errorf("Atlas got %d requests, want %d", n, requests)
				}
			})
		})
	}
}

// TestFault24Flood checks that an endless flood of frames that need a response delays a call no
// longer than the timeout for Atlas. net/http would end such a connection after some seconds.
func TestFault24Flood(t *testing.T) {
	testutil.ParallelWork(t)
	for name, frame := range map[string]func(c *framedConn) error{
		"SETTINGS": func(c *framedConn) error { return c.WriteSettings() },
		"PING":     func(c *framedConn) error { return c.WritePing(false, [8]byte{}) },
	} {
		t.Run(name, func(t *testing.T) {
			var flood atomic.Bool
			framedMatrix(t, func(c *framedConn, _ int32, stream uint32) {
				if !flood.Load() {
					c.answer(stream)
				}
				for err := error(nil); err == nil && flood.Load(); {
					err = frame(c)
				}
			}, func(t *testing.T, _ *framedAtlas, _ *testutil.Service, call func() testutil.Outcome, op testutil.Operation) {
				testutil.Eventually(t, func() bool { return call().Code == codes.OK }, "there is no connection to Atlas") // which can take longer than the timeout
				flood.Store(true)
				got := call()
				flood.Store(false)
				want := testutil.Want{Code: codes.Unavailable, HTTP: 503, Reason: "ATLAS_TIMEOUT", Retry: time.Second}
				if op == testutil.Delete {
					want = testutil.WantUnknown
				}
				want.Check(t, got)
			}, 500*time.Millisecond)
		})
	}
}
