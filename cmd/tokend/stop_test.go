//go:build unix

package main_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// heldCalls are one call over each transport that wait for Atlas's response.
type heldCalls struct {
	gate       *emulator.Gate
	rest, grpc chan string // the token, or "" after a failure; each gets one
}

// hold makes one call over each transport, for different orgs, and returns when Atlas has received
// both.
func (s *service) hold(t *testing.T) heldCalls {
	t.Helper()
	h := heldCalls{s.atlas.Hold(emulator.Create), make(chan string, 1), make(chan string, 1)}
	t.Cleanup(h.gate.Release)
	client := newHTTPClient(t, nil)
	req := newRequest(t, http.MethodPost, "http://"+s.http+restPath, "", "Authorization", "JWT "+s.atlas.Org(0).JWT())
	go func() {
		got, _ := do(client, req)
		h.rest <- got.token()
	}()
	rpc := newRPCClient(t, s.grpc)
	ctx := withJWT(t.Context(), s.atlas.Org(1).JWT())
	go func() {
		resp, _ := rpc.CreateToken(ctx, &ephemeraltokenv1.CreateTokenRequest{})
		h.grpc <- resp.GetToken()
	}()
	if err := h.gate.Wait(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	return h
}

// TestTermDrains checks that SIGTERM makes the process unready and closes its listeners, and that
// calls in progress, but no silent connections, delay its end.
func TestTermDrains(t *testing.T) {
	t.Parallel()
	s := startServe(t, "--drain-timeout=5m")
	for _, addr := range []string{s.grpc, s.http, s.admin} { // as a port probe does
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	calls := s.hold(t)
	s.signal(t, syscall.SIGTERM)
	poll(t, "readyz says that it drains", func() bool { return s.readyz(t) == "503 draining" })
	if got := probe(t, s.admin, "/healthz"); got != "200 ok" {
		t.Errorf("/healthz while draining: %s", got) // it would be restarted
	}
	for _, addr := range []string{s.grpc, s.http} {
		poll(t, "connections are refused", func() bool { return !accepts("tcp", addr) })
	}
	select {
	case <-s.ended:
		t.Fatal("it did not wait for the calls")
	default:
	}
	calls.gate.Release()
	if got, want := <-calls.rest, s.atlas.Org(0).EphemeralToken(); got != want || got == "" {
		t.Errorf("the REST call had %q, want %q", got, want)
	}
	if got, want := <-calls.grpc, s.atlas.Org(1).EphemeralToken(); got != want || got == "" {
		t.Errorf("the gRPC call had %q, want %q", got, want)
	}
	if code := s.awaitEnd(t); code != 0 {
		t.Errorf("exit status %d", code)
	}
	stderr := s.stderr.String()
	if !strings.Contains(stderr, `"msg":"draining"`) || !strings.HasSuffix(stderr, "\"msg\":\"stopped\"}\n") {
		t.Errorf("the log does not say that it drained and stopped:\n%s", stderr)
	}
}

// TestFault63TermUnderLoad checks that clients that stop calling once it is unready lose no call.
func TestFault63TermUnderLoad(t *testing.T) {
	t.Parallel()
	s := startServe(t, "--drain-delay=2s")
	defer s.atlas.Inject(emulator.Fault{Delay: 5 * time.Millisecond})()
	var (
		wg               sync.WaitGroup
		noticed          atomic.Bool
		answered, failed atomic.Int64
		rpc              = newRPCClient(t, s.grpc)
		client           = newHTTPClient(t, nil)
	)
	load := func(jwt string, call func(jwt string) error) {
		wg.Go(func() {
			for !noticed.Load() {
				if err := call(jwt); err != nil {
					failed.Add(1)
					t.Error(err)
				} else {
					answered.Add(1)
				}
			}
		})
	}
	for i := range 8 {
		load(s.atlas.Org(i%2).JWT(), func(jwt string) error {
			_, err := rpc.CreateToken(withJWT(t.Context(), jwt), &ephemeraltokenv1.CreateTokenRequest{})
			return err
		})
		load(s.atlas.Org(i%2).JWT(), func(jwt string) error {
			got, err := do(client, newRequest(t, http.MethodPost, "http://"+s.http+restPath, "", "Authorization", "JWT "+jwt))
			if err == nil && got.token() == "" {
				err = fmt.Errorf("%+v", got)
			}
			return err
		})
	}
	poll(t, "there are calls", func() bool { return answered.Load() > 100 })
	s.signal(t, syscall.SIGTERM)
	poll(t, "readyz says that it drains", func() bool { return s.readyz(t) == "503 draining" })
	before := answered.Load()
	poll(t, "calls are answered while it drains", func() bool { return answered.Load() > before+50 || failed.Load() > 0 })
	noticed.Store(true)
	wg.Wait()
	if code := s.awaitEnd(t); code != 0 || failed.Load() > 0 {
		t.Errorf("exit status %d; %d calls answered, %d failed", code, answered.Load(), failed.Load())
	}
}

// TestFilesWatchedWhileDraining checks that a new policy is used during a drain.
func TestFilesWatchedWhileDraining(t *testing.T) {
	t.Parallel()
	const policy = "callers: [{atlas_jwt: true, allow: [%s], profile: passthrough}]\n"
	file := writeFile(t, "policy.yaml", fmt.Appendf(nil, policy, "CreateToken, DeleteToken"))
	s := startBuilt(t, "--drain-delay=1h", "--policy-file="+file)
	s.signal(t, syscall.SIGTERM)
	poll(t, "readyz says that it drains", func() bool { return s.readyz(t) == "503 draining" })
	replace(t, file, fmt.Sprintf(policy, "CreateToken"))
	poll(t, "the new policy to be in force", func() bool { return strings.Contains(s.stderr.String(), `"policy replaced"`) })
	got, err := do(newHTTPClient(t, nil), newRequest(t, http.MethodDelete, "http://"+s.http+restPath, "", "Authorization", "JWT "+s.atlas.Org(0).JWT()))
	if err != nil || got.status != http.StatusForbidden {
		t.Errorf("a delete that it does not allow: %d, %v", got.status, err)
	}
}

// TestSecondTermEnds checks that a second signal ends a drain.
func TestSecondTermEnds(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			s := startBuilt(t, "--drain-timeout=5m", "--atlas-timeout=5m")
			s.hold(t)
			s.signal(t, sig)
			poll(t, "readyz says that it drains", func() bool { return s.readyz(t) == "503 draining" })
			// The default action is back a moment after readyz says so; a signal before that
			// changes nothing.
			poll(t, "it ends", func() bool {
				if err := s.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
					t.Fatal(err)
				}
				select {
				case <-s.ended:
					return true
				default:
					return false
				}
			})
			if s.code != -1 {
				t.Errorf("it ended with status %d, not by the signal", s.code)
			}
		})
	}
}

// TestNoLeaks checks that no child process and no listener remains after the end.
func TestNoLeaks(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]struct {
		sig  syscall.Signal
		code int
	}{"drained": {syscall.SIGTERM, 0}, "killed": {syscall.SIGKILL, -1}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := socketPath(t)
			s := startBuilt(t, "--grpc-addr=unix:"+path)
			if got := rest(t, http.MethodPost, s.http, "Authorization", "JWT "+s.atlas.Org(0).JWT()); got.token() == "" {
				t.Fatalf("%+v", got)
			}
			children, err := childrenOf(s.Pid)
			if err != nil {
				t.Log("cannot look for children: ", err)
			}
			s.signal(t, end.sig)
			if code := s.awaitEnd(t); code != end.code {
				t.Errorf("exit status %d", code)
			}
			if len(children) > 0 {
				t.Errorf("it had started processes: %q", children)
			}
			for _, addr := range []string{s.http, s.admin} {
				l, err := net.Listen("tcp", addr)
				if err != nil {
					t.Errorf("its address is not free: %v", err)
					continue
				}
				_ = l.Close()
			}
			if accepts("unix", path) {
				t.Error("its socket accepts connections")
			}
		})
	}
}

// childrenOf lists the processes that pid has started.
func childrenOf(pid int) ([]string, error) {
	out, err := exec.Command("ps", "-A", "-o", "ppid=,pid=,comm=").Output()
	if err != nil {
		return nil, err
	}
	var children []string
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[0] == strconv.Itoa(pid) {
			children = append(children, fields[2])
		}
	}
	return children, nil
}
