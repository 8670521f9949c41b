package faults

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/testcert"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// framedAtlas is an Atlas over HTTP/2 whose responses a test writes frame by frame.
type framedAtlas struct {
	url      string
	roots    *x509.CertPool
	requests atomic.Int32
	handle   func(c *framedConn, request int32, stream uint32)
}

// framedConn is one connection to it.
type framedConn struct {
	*http2.Framer
	conn *tls.Conn
}

func startFramedAtlas(t *testing.T, listener net.Listener, handle func(c *framedConn, request int32, stream uint32)) *framedAtlas {
	t.Helper()
	ca := testcert.NewAuthority(t)
	a := &framedAtlas{url: "https://" + listener.Addr().String(), roots: x509.NewCertPool(), handle: handle}
	a.roots.AddCert(ca.Cert)
	cert := ca.Issue(t, "localhost")
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
				a.serve(tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}}))
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

// answer writes a 201 with a token, which is a valid response to a delete as well.
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
	_ = c.conn.NetConn().(interface{ SetLinger(sec int) error }).SetLinger(0)
	_ = c.conn.NetConn().Close()
}

// framed makes the service call a framedAtlas.
func framed(a *framedAtlas, timeout time.Duration) func(*server.Config, *atlas.Config) {
	return func(_ *server.Config, cfg *atlas.Config) {
		cfg.BaseURL, cfg.RootCAs, cfg.Timeout = a.url, a.roots, timeout
	}
}

// TestFault23Unprocessed checks that a delete is retried only if HTTP/2 says that it was not
// processed. A create is always retried.
func TestFault23Unprocessed(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		first  func(c *framedConn, stream uint32)
		delete testutil.Want
	}{
		"refused stream": {func(c *framedConn, stream uint32) { _ = c.WriteRSTStream(stream, http2.ErrCodeRefusedStream) }, testutil.WantDeleted},
		"reset stream":   {func(c *framedConn, stream uint32) { _ = c.WriteRSTStream(stream, http2.ErrCodeInternal) }, testutil.WantUnknown},
		// It was not processed either, but net/http reports it like a reset without a reason.
		"GOAWAY before it": {func(c *framedConn, _ uint32) { _ = c.WriteGoAway(0, http2.ErrCodeNo, nil) }, testutil.WantUnknown},
		"GOAWAY after it": {func(c *framedConn, stream uint32) {
			_ = c.WriteGoAway(stream, http2.ErrCodeNo, nil)
			c.abort()
		}, testutil.WantUnknown},
		"lost connection": {func(c *framedConn, _ uint32) { c.abort() }, testutil.WantUnknown},
	} {
		for op, want := range map[testutil.Operation]testutil.Want{testutil.Create: testutil.WantCreated, testutil.Delete: tc.delete} {
			for _, transport := range []string{"gRPC", "REST"} {
				t.Run(name+"/"+transport+"/"+string(op), func(t *testing.T) {
					testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
						a := startFramedAtlas(t, v.Listen(t), func(c *framedConn, request int32, stream uint32) {
							if request == 1 {
								tc.first(c, stream)
								return
							}
							c.answer(stream)
						})
						s := v.Start(t, testutil.Plaintext, framed(a, 15*time.Second))
						want.Check(t, s.Callers(t)[transport].Call(testutil.Context(t), op, testutil.Credential(s.Atlas)...))
						requests := int32(2)
						if want.Code != codes.OK {
							requests = 1
						}
						if n := a.requests.Load(); n != requests {
							t.Errorf("%d requests to Atlas, want %d", n, requests)
						}
					})
				})
			}
		}
	}
}

// TestFault24Flood checks that an endless flood of frames that need a response delays a call no
// longer than the timeout for Atlas. net/http would end such a connection after some seconds.
func TestFault24Flood(t *testing.T) {
	testutil.ParallelWork(t)
	frames := map[string]func(c *framedConn) error{
		"PING":     func(c *framedConn) error { return c.WritePing(false, [8]byte{}) },
		"SETTINGS": func(c *framedConn) error { return c.WriteSettings() },
	}
	for _, name := range testutil.Some([]string{"PING", "SETTINGS"}, 1) {
		frame := frames[name]
		t.Run(name, func(t *testing.T) {
			var flood atomic.Bool
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			a := startFramedAtlas(t, listener, func(c *framedConn, _ int32, stream uint32) {
				if !flood.Load() {
					c.answer(stream)
				}
				for err := error(nil); err == nil && flood.Load(); {
					err = frame(c)
				}
			})
			s := testutil.Start(t, testutil.Plaintext, framed(a, 500*time.Millisecond))
			timeout := testutil.Want{Code: codes.Unavailable, HTTP: 503, Reason: "ATLAS_TIMEOUT", Retry: time.Second}
			for transport, op := range map[string]testutil.Operation{"gRPC": testutil.Create, "REST": testutil.Delete} {
				c, jwt := s.Callers(t)[transport], testutil.Credential(s.Atlas)
				testutil.Eventually(t, func() bool { return c.Call(testutil.Context(t), op, jwt...).Code == codes.OK }, "there is no connection to Atlas")
				flood.Store(true)
				got := c.Call(testutil.Context(t), op, jwt...)
				flood.Store(false)
				map[testutil.Operation]testutil.Want{testutil.Create: timeout, testutil.Delete: testutil.WantUnknown}[op].Check(t, got)
			}
		})
	}
}
