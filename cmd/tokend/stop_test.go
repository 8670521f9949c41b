//go:build unix

package main_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
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
