//go:build unix

package main_test

import (
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// onLoopback returns the loopback address of a listener on all addresses.
func onLoopback(addr string) string {
	return "127.0.0.1" + addr[strings.LastIndexByte(addr, ':'):]
}

// TestServeUnixSocket checks that a socket file has the mode of the flag and is removed at the end,
// that the socket of a killed process is replaced, and that neither a socket in use nor a regular
// file is.
func TestServeUnixSocket(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	em := startAtlas(t)
	start := func(built bool) *service {
		return invocation{args: []string{"--grpc-addr=unix:" + path, "--grpc-socket-mode=0660"}, built: built}.startServe(t, em)
	}
	call := func() string {
		got, err := newRPCClient(t, "unix:"+path).CreateToken(withJWT(t.Context(), em.Org(0).JWT()), &ephemeraltokenv1.CreateTokenRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return got.GetToken()
	}
	refused := func(why string) {
		got := tokend(t, slices.Concat([]string{"serve"}, freePorts, []string{"--grpc-addr=unix:" + path})...)
		if got.code != 1 || !strings.HasPrefix(got.stderr, "tokend: --grpc-addr: unix:"+path+": ") || strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("%s: exit status %d\n%s", why, got.code, got.stderr)
		}
	}

	killed := start(true)
	first := call()
	killed.signal(t, os.Kill)
	killed.awaitEnd(t)
	if _, err := os.Lstat(path); err != nil {
		t.Fatalf("a killed process should leave its socket: %v", err)
	}
	second := start(false)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket has mode %v, %v", info.Mode(), err)
	}
	refused("socket in use")
	if token := call(); token == "" || token != first {
		t.Errorf("token %q, before %q", token, first)
	}
	second.signal(t, syscall.SIGTERM)
	if code := second.awaitEnd(t); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left behind: %v", err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("a file")
	if content, err := os.ReadFile(path); err != nil || string(content) != "precious" {
		t.Errorf("the file is now %q, %v", content, err)
	}
}

// TestServePlaintext checks that --plaintext permits listeners beyond loopback.
func TestServePlaintext(t *testing.T) {
	t.Parallel()
	s := startServe(t, "--plaintext", "--grpc-addr=0.0.0.0:0", "--http-addr=:0")
	jwt := s.atlas.Org(0).JWT()
	overREST := rest(t, http.MethodPost, onLoopback(s.http), "Authorization", "JWT "+jwt).token()
	overGRPC, err := newRPCClient(t, onLoopback(s.grpc)).CreateToken(withJWT(t.Context(), jwt), &ephemeraltokenv1.CreateTokenRequest{})
	if err != nil || overREST == "" || overREST != overGRPC.GetToken() {
		t.Errorf("REST has %q, gRPC %q, %v", overREST, overGRPC.GetToken(), err)
	}
}

// TestServeWithoutListeners checks that each listener can be off.
func TestServeWithoutListeners(t *testing.T) {
	t.Parallel()
	em := startAtlas(t)
	p := invocation{args: slices.Concat([]string{"serve", "--drain-delay=0s", "--grpc-addr=", "--http-addr=127.0.0.1:0", "--admin-addr="}, atlasFlags(t, em))}.start(t)
	at := p.awaitOutput(t, p.stderr, serving)
	if at[1] != "off" || at[3] != "off" {
		t.Errorf("it says that it serves at %q", at[1:])
	}
	if got := rest(t, http.MethodPost, at[2], "Authorization", "JWT "+em.Org(0).JWT()); got.token() == "" {
		t.Errorf("%+v", got)
	}
}
