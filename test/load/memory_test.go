package load

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/proto"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

// hoard is what a client does on each connection to occupy the server's memory.
type hoard struct {
	name    string
	rest    bool
	conns   int
	path    string
	message []byte   // over gRPC; nil: none is sent
	headers []string // that are sent too
	churn   bool     // the connections are closed and reopened
	most    int64    // MiB of memory, 200 by default; more where a faster machine makes more garbage
}

const (
	mebibyte   = 1 << 20
	hoardFor   = 12 * time.Second
	reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
)

// TestFault97Memory checks the memory of a tokend process under clients that do not read responses
// (a window of 0) or open idle streams, while others call it.
func TestFault97Memory(t *testing.T) {
	testutil.SkipUnlessLong(t)
	binary := os.Getenv("TEST_BINARY")
	if binary == "" {
		binary = filepath.Join(t.TempDir(), "tokend")
		build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./cmd/tokend")
		build.Dir = testutil.Path(".")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	longName, err := proto.Marshal(&healthpb.HealthCheckRequest{Service: strings.Repeat("s", 60<<10)})
	if err != nil {
		t.Fatal(err)
	}
	file, err := proto.Marshal(&reflectionpb.ServerReflectionRequest{
		MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "grpc.health.v1.Health"},
	})
	if err != nil {
		t.Fatal(err)
	}
	large := make([]string, 0, 120) // 180 KiB of headers, most of them one byte in HPACK
	for range 60 {
		large = append(large, "x-large", strings.Repeat("x", 3<<10))
	}
	many := slices.Repeat([]string{"x-f", ""}, 3600) // in HPACK one byte each, in memory a hundred
	for _, h := range []hoard{
		{name: "Watch of long names", conns: 30, path: healthpb.Health_Watch_FullMethodName, message: longName},
		{name: "reflection without a message", conns: 60, path: reflection},
		{name: "reflection that is not read", conns: 100, path: reflection, message: bytes.Repeat(frameMessage(file), 20)},
		{name: "404 that is not read", rest: true, conns: 300, path: "/nothing"},
		{name: "openapi.json that is not read", rest: true, conns: 300, path: "/openapi.json"},
		{name: "431 of net/http that is not read", rest: true, conns: 300, path: "/nothing", headers: large},
		{name: "many header fields over REST", rest: true, conns: 300, path: "/nothing", headers: many},
		{name: "many header fields over gRPC", conns: 100, path: healthpb.Health_Check_FullMethodName, headers: many, most: 300},
		{name: "gRPC that is not read", conns: 300, path: healthpb.Health_Check_FullMethodName, message: []byte{}},
		{name: "REST, opened and closed", rest: true, conns: 300, path: "/nothing", churn: true, most: 300},
	} {
		t.Run(h.name, func(t *testing.T) {
			if h.message != nil && h.path != reflection {
				h.message = frameMessage(h.message)
			}
			p := startTokend(t, binary)
			ctx, cancel := context.WithTimeout(t.Context(), hoardFor)
			defer cancel()
			var wg sync.WaitGroup
			for range h.conns {
				wg.Go(func() {
					for ctx.Err() == nil {
						h.open(ctx, p.addr(h.rest))
						if !h.churn {
							select {
							case <-time.After(time.Second):
							case <-ctx.Done():
							}
						}
					}
				})
			}
			most := int64(0)
			wg.Go(func() {
				for ctx.Err() == nil {
					most = max(most, p.rss(t))
					<-time.After(50 * time.Millisecond)
				}
			})
			good, bad := p.goodCalls(ctx, t)
			wg.Wait()
			t.Logf("RSS %d MiB at most; %d calls of others, %d of them failed", most/mebibyte, good+bad, bad)
			limit := cmp.Or(h.most, 200)
			if most > limit*mebibyte {
				t.Errorf("RSS was %d MiB, want at most %d", most/mebibyte, limit)
			}
			if bad*100 > good {
				t.Errorf("%d of %d calls of others failed", bad, good+bad)
			}
		})
	}
}

func frameMessage(m []byte) []byte {
	return append([]byte{0, byte(len(m) >> 24), byte(len(m) >> 16), byte(len(m) >> 8), byte(len(m))}, m...)
}

// open holds a connection with 100 streams until the server closes it or ctx is done.
func (h hoard) open(ctx context.Context, addr string) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		<-time.After(10 * time.Millisecond)
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	var mu sync.Mutex
	framer := http2.NewFramer(conn, conn)
	_, _ = io.WriteString(conn, http2.ClientPreface)
	_ = framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			f, err := framer.ReadFrame()
			if err != nil {
				return
			}
			mu.Lock()
			if ping, ok := f.(*http2.PingFrame); ok && !ping.IsAck() {
				_ = framer.WritePing(true, ping.Data)
			}
			if settings, ok := f.(*http2.SettingsFrame); ok && !settings.IsAck() {
				_ = framer.WriteSettingsAck()
			}
			mu.Unlock()
		}
	}()
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for i := range uint32(100) {
		block.Reset()
		method, kind := "POST", "application/grpc"
		if h.rest {
			method, kind = "GET", "application/json"
		}
		fields := append([]string{":method", method, ":scheme", "http", ":authority", "x", ":path", h.path, "content-type", kind, "te", "trailers"}, h.headers...)
		for j := 0; j < len(fields); j += 2 {
			_ = encoder.WriteField(hpack.HeaderField{Name: fields[j], Value: fields[j+1]})
		}
		mu.Lock()
		err = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: h.rest})
		for rest := h.message; err == nil && len(rest) > 0; {
			n := min(len(rest), 16<<10)
			err = framer.WriteData(2*i+1, false, rest[:n])
			rest = rest[n:]
		}
		mu.Unlock()
		if err != nil {
			break
		}
	}
	if h.churn {
		select {
		case <-time.After(500 * time.Millisecond):
		case <-done:
		}
		return
	}
	<-done
}

// tokend is a process under test.
type tokend struct {
	pid                int
	grpcAddr, restAddr string
	jwt                string
}

func (p *tokend) addr(rest bool) string {
	if rest {
		return p.restAddr
	}
	return p.grpcAddr
}

func startTokend(t *testing.T, binary string) *tokend {
	t.Helper()
	em, err := emulator.Start(emulator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, em.CAPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &tokend{grpcAddr: freeAddr(t), restAddr: freeAddr(t), jwt: em.Org(0).JWT()}
	cmd := exec.Command(binary, "serve", "--grpc-addr", p.grpcAddr, "--http-addr", p.restAddr, "--admin-addr", "",
		"--docs", "--atlas-url", em.URL(), "--atlas-ca-file", ca, "--log-level", "error")
	cmd.Env, cmd.Stderr = []string{"GOMEMLIMIT=" + os.Getenv("GOMEMLIMIT")}, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.pid = cmd.Process.Pid
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	testutil.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", p.restAddr)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}, "tokend does not listen")
	return p
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// rss returns the resident memory of the process in bytes.
func (p *tokend) rss(t *testing.T) int64 {
	t.Helper()
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.pid))
	if err != nil {
		testutil.SkipWithout(t, "/proc")
	}
	pages, err := strconv.ParseInt(strings.Fields(string(statm))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// goodCalls calls over both transports 20 times a second until ctx is done, and returns how many
// calls succeeded and failed.
func (p *tokend) goodCalls(ctx context.Context, t *testing.T) (good, bad int64) {
	t.Helper()
	conn, err := grpc.NewClient(p.grpcAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	rest := &http.Transport{}
	defer rest.CloseIdleConnections()
	callers := []testutil.Caller{testutil.NewGRPCCaller(conn), testutil.RESTCaller{Base: "http://" + p.restAddr, Client: &http.Client{Transport: rest}}}
	for n := 0; ctx.Err() == nil; n++ {
		got := callers[n%2].Call(testutil.Context(t), testutil.Create, "authorization", "JWT "+p.jwt)
		if got.Token != "" {
			good++
		} else if bad++; bad < 4 {
			t.Logf("a call failed: %v %s %s", got.Code, got.Reason, got.Message)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return good, bad
}
