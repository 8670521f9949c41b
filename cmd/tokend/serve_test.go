//go:build unix

package main_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// onLoopback returns the loopback address of a listener on all addresses.
func onLoopback(addr string) string {
	return "127.0.0.1" + addr[strings.LastIndexByte(addr, ':'):]
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
