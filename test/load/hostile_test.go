package load

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// TestFault48Slow checks that clients that send slowly are disconnected, and that others are
// served.
func TestFault48Slow(t *testing.T) {
	const (
		request = "POST /v1/ephemeral-token HTTP/1.1\r\nHost: x\r\n"
		// HTTP/2: the preface, empty SETTINGS, and the beginnings of frames on stream 1.
		settings = http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
		frame    = "\x00\x40\x00\x01\x04\x00\x00\x00\x01"                // HEADERS of 16 KiB
		block    = settings + "\x00\x00\x01\x01\x00\x00\x00\x00\x01\x83" // HEADERS without an end: `:method: POST`
		more     = "\x00\x00\x01\x09\x00\x00\x00\x00\x01\x86"            // CONTINUATION, without an end
	)
	always := func(s string) func(int) string { return func(int) string { return s } }
	for _, mode := range []testutil.Security{testutil.Plaintext, testutil.ServerTLS} {
		t.Run(string(mode), func(t *testing.T) {
			testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
				s := v.Start(t, mode)
				stop := s.GoodCalls(t)
				var wg sync.WaitGroup
				slow := func(l testutil.Listener, name string, protocols []string, first string, then func(i int) string) {
					conn := s.Dial(t, l, protocols...)
					wg.Go(func() {
						end := make(chan struct{})
						defer close(end)
						go func() { // some bytes every half second
							_, err := conn.Write([]byte(first))
							for i := 0; err == nil && then != nil; i++ {
								select {
								case <-time.After(500 * time.Millisecond):
									_, err = conn.Write([]byte(then(i)))
								case <-end:
									return
								}
							}
						}()
						awaitEnd(t, conn, fmt.Sprint(l, ", ", name))
					})
				}
				h1, h2 := []string{"http/1.1"}, []string{"h2"}
				for _, l := range []testutil.Listener{testutil.GRPC, testutil.REST} {
					slow(l, "nothing", nil, "", nil)
					if mode != testutil.Plaintext {
						slow(l, "a slow ClientHello", nil, "\x16\x03\x01\x02\x00\x01", always("\x00"))
						slow(l, "nothing after the handshake", h2, "", nil)
					}
					slow(l, "a slow preface", h2, "", func(i int) string { return http2.ClientPreface[i%24 : i%24+1] })
					slow(l, "a slow frame", h2, settings+frame, always("\x00"))
					slow(l, "an endless header block", h2, block, always(more))
				}
				slow(testutil.REST, "a slow request line", h1, "P", always("O"))
				slow(testutil.REST, "slow headers", h1, request, always("A: b\r\n"))
				slow(testutil.REST, "a slow body", h1, request+"Content-Type: application/json\r\nContent-Length: 99\r\n\r\n", always(" "))
				slow(testutil.REST, "a slow chunked body", h1, request+"Transfer-Encoding: chunked\r\n\r\n", always("1\r\n \r\n"))
				wg.Wait()
				stop()
			})
		})
	}
}

// stubbornTokens answers one caller at once, and others when they cancel.
type stubbornTokens struct {
	good             atlas.JWT
	inProgress, most atomic.Int64
}

func (s *stubbornTokens) Create(ctx context.Context, cred atlas.Credential, _ bool) (tokencache.Result, error) {
	if cred.JWT == s.good {
		return tokencache.Result{Token: "good"}, nil
	}
	n := s.inProgress.Add(1)
	defer s.inProgress.Add(-1)
	for most := s.most.Load(); n > most; most = s.most.Load() {
		if s.most.CompareAndSwap(most, n) {
			break
		}
	}
	<-ctx.Done()
	return tokencache.Result{}, ctx.Err()
}

func (s *stubbornTokens) Delete(context.Context, atlas.Credential) (string, error) { return "", nil }
func (s *stubbornTokens) Check() error                                             { return nil }

// TestFault49RapidReset checks that calls that are reset at once (CVE-2023-44487), each with
// another credential, stay within the limits.
func TestFault49RapidReset(t *testing.T) {
	for _, at := range testutil.Some(floodModes, 1) {
		t.Run(fmt.Sprint(at.listener, " ", at.mode), func(t *testing.T) {
			const maxCalls, conns, ahead = 50, 4, 50
			tokens := &stubbornTokens{}
			s := testutil.Start(t, at.mode, func(c *server.Config, _ *atlas.Config) {
				c.MaxCalls = maxCalls
				c.Tokens = func(tokencache.Atlas) server.Tokens { return tokens }
			})
			tokens.good = atlas.JWT(s.Atlas.Org(0).JWT())
			before := measureFootprint()
			var wg sync.WaitGroup
			var resets atomic.Int64
			mostGoroutines := 0
			for c := range conns {
				h := s.RawHTTP2(t, at.listener, true)
				wg.Go(func() {
					resets.Add(int64(h.Flood(5000, func(i int) error {
						if err := h.Call(uint32(2*i+1), fmt.Sprintf("a.%d-%d.c", c, i)); err != nil || i < ahead {
							return err
						}
						return h.Framer.WriteRSTStream(uint32(2*(i-ahead)+1), http2.ErrCodeCancel)
					})))
					_ = h.Close()
				})
			}
			flooded := make(chan struct{})
			go func() {
				wg.Wait()
				close(flooded)
			}()
			good := s.Callers(t)
			for over := false; !over; {
				select {
				case <-flooded:
					over = true
				case <-time.After(20 * time.Millisecond):
				}
				mostGoroutines = max(mostGoroutines, measureFootprint().goroutines)
				for name, c := range good { // the flood may take all places
					if got := c.Call(testutil.Context(t), testutil.Create, "authorization", "JWT "+string(tokens.good)); got.Token == "" && got.Reason != "OVERLOADED" {
						t.Errorf("%s: the other caller: %v %s %s", name, got.Code, got.Reason, got.Message)
					}
				}
			}
			if most := tokens.most.Load(); most == 0 || most > maxCalls {
				t.Errorf("%d handlers at a time, want 1 to %d", most, maxCalls)
			}
			// The connection's own, and one per stream.
			if grown := mostGoroutines - before.goroutines; grown > conns*(100+20)+100 {
				t.Errorf("%d more goroutines during the flood of %d resets", grown, resets.Load())
			}
			testutil.Eventually(t, func() bool { return tokens.inProgress.Load() == 0 }, "calls of reset streams are still in progress")
			for name, c := range good {
				if got := c.Call(testutil.Context(t), testutil.Create, "authorization", "JWT "+string(tokens.good)); got.Token == "" {
					t.Errorf("%s, after the flood: %v %s", name, got.Code, got.Reason)
				}
			}
			before.checkGrowth(t, 32<<20, 100)
			t.Logf("%d resets, %d handlers and %d more goroutines at most", resets.Load(), tokens.most.Load(), mostGoroutines-before.goroutines)
		})
	}
}

// TestFault50Frames checks that floods of cheap frames end with their connection or cost bounded
// memory.
func TestFault50Frames(t *testing.T) {
	type ending int
	const (
		never  ending = iota
		atOnce        // the server closes the connection
		late          // the same, after a timeout
	)
	type flood struct {
		name     string
		settings []http2.Setting
		reads    bool
		frame    func(h *testutil.RawHTTP2) func(i int) error
		ends     ending
	}
	open := func(h *testutil.RawHTTP2, bytes int) func(i int) error {
		_ = h.Open(1, "a.b.c")
		return func(int) error { return h.Framer.WriteData(1, false, make([]byte, bytes)) }
	}
	calls := func(h *testutil.RawHTTP2) func(i int) error {
		return func(i int) error { return h.Call(uint32(2*i+1), "a.b.c") }
	}
	floods := []flood{
		{"pings, answers not read", nil, false, func(h *testutil.RawHTTP2) func(int) error {
			return func(int) error { return h.Framer.WritePing(false, [8]byte{}) }
		}, late},
		{"settings, answers not read", nil, false, func(h *testutil.RawHTTP2) func(int) error {
			return func(int) error { return h.Framer.WriteSettings() }
		}, late},
		{"empty DATA", nil, true, func(h *testutil.RawHTTP2) func(int) error { return open(h, 0) }, never},
		{"DATA of one byte", nil, true, func(h *testutil.RawHTTP2) func(int) error { return open(h, 1) }, never},
		{"CONTINUATION", nil, true, func(h *testutil.RawHTTP2) func(int) error {
			_ = h.Framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: h.Headers("a.b.c")})
			h.Block.Reset()
			return func(int) error {
				return h.Framer.WriteContinuation(1, false, h.Headers("a.b.c", "x", strings.Repeat("x", 1000)))
			}
		}, atOnce},
		{"empty CONTINUATION", nil, true, func(h *testutil.RawHTTP2) func(int) error {
			_ = h.Framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: h.Headers("a.b.c")})
			return func(int) error { return h.Framer.WriteContinuation(1, false, nil) }
		}, late},
		{"calls, answers not read", nil, false, calls, late},
		{"calls without a window for the response", []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 0}}, true, calls, never},
		{"windows that grow by one", []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 0}}, true, func(h *testutil.RawHTTP2) func(int) error {
			_ = h.Call(1, "a.b.c")
			return func(i int) error { return h.Framer.WriteWindowUpdate(uint32(i%2), 1) }
		}, never},
		{"windows that are opened and closed", nil, true, func(h *testutil.RawHTTP2) func(int) error {
			_ = h.Call(1, "a.b.c")
			return func(i int) error {
				return h.Framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i % 2)})
			}
		}, never},
		{"PRIORITY", nil, true, func(h *testutil.RawHTTP2) func(int) error {
			return func(i int) error { return h.Framer.WritePriority(uint32(2*i+1), http2.PriorityParam{}) }
		}, never},
		{"streams that never say more", nil, true, func(h *testutil.RawHTTP2) func(int) error {
			return func(i int) error { return h.Open(uint32(2*i+1), "a.b.c", "x", strings.Repeat("x", 8000)) }
		}, never},
	}
	frames, modes := 2000, testutil.Some(floodModes, 1)
	if testutil.Long() {
		frames = 20_000
	}
	flooded := func(t *testing.T, s *testutil.Service, l testutil.Listener, f flood) {
		stop := s.GoodCalls(t)
		awaitConns(t, s, l, 1) // GoodCalls'
		before := measureFootprint()
		h := s.RawHTTP2(t, l, f.reads, f.settings...)
		n := h.Flood(frames, f.frame(h))
		if f.ends != never {
			awaitConns(t, s, l, 1)
		}
		_ = h.Close()
		stop()
		before.checkGrowth(t, 64<<20, 1000)
		t.Logf("%d frames", n)
	}
	for _, at := range modes {
		t.Run(fmt.Sprint(at.listener, " ", at.mode), func(t *testing.T) {
			s := testutil.Start(t, at.mode)
			for _, f := range floods {
				t.Run(f.name, func(t *testing.T) {
					if f.ends == late {
						testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) { flooded(t, v.Start(t, at.mode), at.listener, f) })
						return
					}
					flooded(t, s, at.listener, f)
				})
			}
		})
	}
}

// TestFault51Connections checks that a flood of connections is refused at the limit without
// affecting connected clients or the admin listener, and that silent connections are closed.
func TestFault51Connections(t *testing.T) {
	for _, mode := range []testutil.Security{testutil.Plaintext, testutil.ServerTLS} {
		t.Run(string(mode), func(t *testing.T) {
			testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
				const maxConns, flood = 20, 100
				s := v.Start(t, mode, func(c *server.Config, _ *atlas.Config) { c.MaxConns = maxConns })
				stop := s.GoodCalls(t)
				for name, c := range s.Callers(t) {
					if got := c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...); got.Token == "" {
						t.Fatalf("%s: %v", name, got.Message)
					}
				}
				open := map[testutil.Listener]*atomic.Int64{testutil.GRPC: {}, testutil.REST: {}}
				var wg sync.WaitGroup
				for l, n := range open {
					for range flood {
						conn := s.Dial(t, l)
						n.Add(1)
						wg.Go(func() {
							awaitEnd(t, conn, fmt.Sprint(l))
							n.Add(-1)
						})
					}
				}
				for l, n := range open {
					testutil.Eventually(t, func() bool { return n.Load() < maxConns }, fmt.Sprint(l, ": connections beyond the limit stay open"))
				}
				for range 20 {
					if code, body := s.Get(t, "/readyz"); code != 200 {
						t.Errorf("/readyz in the flood: %d %q", code, body)
					}
				}
				_, metrics := s.Get(t, "/metrics")
				for _, want := range []string{`tokend_connections_refused_total{limit="listener",listener="gRPC"}`, `tokend_connections_refused_total{limit="listener",listener="HTTP"}`} {
					if !strings.Contains(metrics, want) {
						t.Errorf("/metrics has no %s", want)
					}
				}
				stop()
				if !testutil.Long() {
					return
				}
				wg.Wait()                           // silent connections are closed, too
				for name, c := range s.Callers(t) { // with new connections
					if got := c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...); got.Token == "" {
						t.Errorf("%s, after the flood: %v", name, got.Message)
					}
				}
			})
		})
	}
}
