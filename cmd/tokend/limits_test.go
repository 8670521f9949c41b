//go:build linux

package main_test

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// limitDescriptors sets how many files and connections a process may have open, and returns what
// undoes it.
func limitDescriptors(t *testing.T, pid int, most uint64) (restore func()) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &old); err != nil {
		t.Fatal(err)
	}
	set := func(cur uint64) {
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: cur, Max: old.Max}, nil); err != nil {
			t.Fatal(err)
		}
	}
	set(most)
	return func() { set(old.Cur) }
}

// openMany opens up to n connections to addr, which stay silent until the test ends.
func openMany(t *testing.T, addr string, n int) {
	t.Helper()
	for range n {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return // turned away, or the kernel's queue is full
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
}

// TestFault51FewDescriptors checks that with a low limit of descriptors, a flood of connections
// leaves enough of them for probes, for connected clients and for Atlas.
func TestFault51FewDescriptors(t *testing.T) {
	t.Parallel()
	binary, err := exec.LookPath("tokend")
	if err != nil {
		t.Fatal(err)
	}
	// A shell lowers the hard limit, since the Go runtime raises its own up to that.
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip(err)
	}
	wrapper := writeFile(t, "tokend", []byte("#!"+sh+"\nulimit -n 100\nexec "+binary+" \"$@\"\n"))
	if err := os.Chmod(wrapper, 0o700); err != nil {
		t.Fatal(err)
	}
	em, err := emulator.Start(emulator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	s := invocation{program: wrapper, args: append([]string{"serve", "--drain-delay=0s", "--grpc-addr=127.0.0.1:0", "--http-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0"}, atlasFlags(t, em)...)}.await(t, em)
	rpc := newRPCClient(t, s.grpc)
	call := func(org int) error {
		_, err := rpc.CreateToken(withJWT(t.Context(), em.Org(org).JWT()), &ephemeraltokenv1.CreateTokenRequest{})
		return err
	}
	if err := call(0); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		openMany(t, s.grpc, 200)
		openMany(t, s.http, 200)
		if got := s.readyz(t); got != "200 ready" {
			t.Errorf("/readyz: %s", got)
		}
		if err := call(1); err != nil {
			t.Errorf("a caller that is connected: %v", err)
		}
	}
	poll(t, "a new caller is let in again", func() bool {
		got, err := do(newHTTPClient(t, nil), newRequest(t, http.MethodPost, "http://"+s.http+restPath, "", "Authorization", "JWT "+em.Org(0).JWT()))
		return err == nil && got.token() != ""
	})
}

// TestFault51NoDescriptors checks that without a free descriptor it neither ends nor spins, and
// then recovers.
func TestFault51NoDescriptors(t *testing.T) {
	t.Parallel()
	s := startBuilt(t)
	restore := limitDescriptors(t, s.Pid, 3)
	openMany(t, s.grpc, 20)
	openMany(t, s.http, 20)
	<-time.After(time.Second) // a loop without a pause would fail thousands of times
	if n := strings.Count(s.stderr.String(), "\n"); n > 50 {
		t.Errorf("the log has %d lines: it spins", n)
	}
	restore()
	poll(t, "it serves again", func() bool { return s.readyz(t) == "200 ready" })
	if got := rest(t, http.MethodPost, s.http, "Authorization", "JWT "+s.atlas.Org(0).JWT()); got.token() == "" {
		t.Errorf("%+v", got)
	}
}

// TestCallerRateFlag checks the response to a caller that exceeds --caller-rate.
func TestCallerRateFlag(t *testing.T) {
	t.Parallel()
	s := startServe(t, "--caller-rate=1")
	jwt := s.atlas.Org(0).JWT() // each is another one, and so another caller
	call := func(jwt string) answer { return rest(t, http.MethodPost, s.http, "Authorization", "JWT "+jwt) }
	poll(t, "the second call within a second is refused", func() bool {
		got := call(jwt)
		return got.status == http.StatusTooManyRequests && strings.Contains(got.body, "OVERLOADED") && got.header.Get("Retry-After") == "1"
	})
	if got := call(s.atlas.Org(0).JWT()); got.token() == "" {
		t.Errorf("another caller: %+v", got)
	}
}

// TestAtlasDownIsLogged checks that the log has a line when the breaker opens, and when it closes
// without traffic.
func TestAtlasDownIsLogged(t *testing.T) {
	t.Parallel()
	s := startServe(t)
	recovered := s.atlas.Inject(emulator.Fault{Status: 503})
	call := func() { rest(t, http.MethodDelete, s.http, "Authorization", "JWT "+s.atlas.Org(0).JWT()) }
	poll(t, "the breaker to open", func() bool {
		var calls sync.WaitGroup
		for range 10 {
			calls.Go(call)
		}
		calls.Wait()
		return strings.Contains(s.stderr.String(), `"circuit breaker open: failing fast`)
	})
	if strings.Contains(s.stderr.String(), "circuit breaker closed") {
		t.Error("the log says that it has closed")
	}
	recovered()
	poll(t, "the breaker to close", func() bool {
		return strings.Contains(s.stderr.String(), `"circuit breaker closed: Atlas answers again"`)
	})
}
