//go:build unix

package main_test

import (
	"crypto/tls"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// The token is the one that Atlas has for the org, until it is deleted.
func TestTokenWorks(t *testing.T) {
	t.Parallel()
	s := startServe(t)
	auth := []string{"Authorization", "JWT " + s.atlas.Org(0).JWT()}
	token := rest(t, http.MethodPost, s.http, auth...).token()
	if at := s.atlas.Org(0).EphemeralToken(); token == "" || token != at {
		t.Error("the token is not the one that Atlas has")
	}
	if got := rest(t, http.MethodDelete, s.http, auth...); got.status != http.StatusNoContent {
		t.Errorf("delete: %+v", got)
	}
	if at := s.atlas.Org(0).EphemeralToken(); at != "" {
		t.Error("Atlas has a token after the delete")
	}
	// Each org has its own.
	if other := rest(t, http.MethodPost, s.http, "Authorization", "JWT "+s.atlas.Org(1).JWT()).token(); other == "" || other == token {
		t.Errorf("the other org has %q, the first had %q", other, token)
	}
}

// TestServeTLS checks who is let in with TLS and with mutual TLS, over both transports.
func TestServeTLS(t *testing.T) {
	t.Parallel()
	certs, stranger := makeCertificates(t), makeCertificates(t)
	files := []string{"--tls-cert-file=" + certs.serverCert, "--tls-key-file=" + certs.serverKey}
	for name, test := range map[string]struct {
		args    []string
		client  *tls.Config
		refused []*tls.Config
	}{
		"TLS": {
			args:   files,
			client: &tls.Config{RootCAs: certs.pool},
			refused: []*tls.Config{
				{RootCAs: stranger.pool},
				{RootCAs: certs.pool, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10},
			},
		},
		"mTLS": {
			args:   append(files[:2:2], "--tls-client-ca-file="+certs.caFile),
			client: &tls.Config{RootCAs: certs.pool, Certificates: []tls.Certificate{certs.client}},
			refused: []*tls.Config{
				{RootCAs: certs.pool},
				{RootCAs: certs.pool, GetClientCertificate: showAlways(stranger.client)},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// TLS is what permits to listen beyond loopback.
			s := startServe(t, append(test.args, "--grpc-addr=0.0.0.0:0", "--http-addr=0.0.0.0:0")...)
			grpcAddr, httpAddr := onLoopback(s.grpc), onLoopback(s.http)
			auth := []string{"authorization", "JWT " + s.atlas.Org(0).JWT()}
			post := func(config *tls.Config) (answer, error) {
				return do(newHTTPClient(t, config.Clone()), newRequest(t, http.MethodPost, "https://"+httpAddr+restPath, "", auth...))
			}
			got, err := post(test.client)
			if err != nil || got.token() == "" {
				t.Errorf("HTTPS: %v, %+v", err, got)
			}
			if token, err := rpcToken(t, grpcAddr, test.client.Clone(), auth...); err != nil || token != got.token() {
				t.Errorf("gRPC: %v; the token of HTTPS: %t", err, token == got.token())
			}
			for _, config := range test.refused {
				if got, err := post(config); err == nil {
					t.Errorf("HTTPS with the wrong certificates: %+v", got)
				}
				if _, err := rpcToken(t, grpcAddr, config.Clone(), auth...); status.Code(err) != codes.Unavailable {
					t.Errorf("gRPC with the wrong certificates: %v", err)
				}
			}
			if got, err := do(newHTTPClient(t, nil), newRequest(t, http.MethodPost, "http://"+httpAddr+restPath, "", auth...)); err == nil && got.status != http.StatusBadRequest {
				t.Errorf("HTTP without TLS: %+v", got)
			}
			if calls := s.atlas.Calls(emulator.Any); calls != 2 {
				t.Errorf("Atlas was called %d times, want 2", calls)
			}
		})
	}
}

// showAlways shows the certificate whatever the server asks for; Go's client keeps to itself one that the server would refuse.
func showAlways(certificate tls.Certificate) func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil }
}

// onLoopback is where a listener on every address is on this machine.
func onLoopback(addr string) string {
	return "127.0.0.1" + addr[strings.LastIndexByte(addr, ':'):]
}

// Who may connect to a socket file is up to the flags, not to the umask; whoever may, is served.
func TestServeSocketMode(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		args []string
		want os.FileMode
	}{
		"default": {nil, 0o600},
		"group":   {[]string{"--grpc-socket-mode=0660"}, 0o660},
		"anybody": {[]string{"--grpc-socket-mode=666"}, 0o666},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := socketPath(t)
			s := startServe(t, append(test.args, "--grpc-addr=unix:"+path)...)
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if got := info.Mode().Perm(); got != test.want {
				t.Errorf("the mode is %v, want %v", got, test.want)
			}
			rpc := newRPCClient(t, "unix:"+path)
			if _, err := rpc.CreateToken(withJWT(t.Context(), s.atlas.Org(0).JWT()), &ephemeraltokenv1.CreateTokenRequest{}); err != nil {
				t.Error(err)
			}
		})
	}
}

// A socket file is as good as a port. One left behind is replaced, one in use is not, and a file is not.
func TestServeUnixSocket(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	em := startAtlas(t)
	start := func(built bool) *service {
		return invocation{args: []string{"--grpc-addr=unix:" + path}, built: built}.startServe(t, em)
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

// A container has no arguments: every setting comes from its environment.
func TestServeFromEnvironment(t *testing.T) {
	t.Parallel()
	em := startAtlas(t)
	certs := makeCertificates(t)
	env := []string{
		"TOKEND_GRPC_ADDR=0.0.0.0:0", "TOKEND_HTTP_ADDR=0.0.0.0:0", "TOKEND_ADMIN_ADDR=127.0.0.1:0",
		"TOKEND_ATLAS_URL=" + em.URL(), "TOKEND_ATLAS_CA_FILE=" + writeFile(t, "ca.pem", em.CAPEM()), "TOKEND_ATLAS_TIMEOUT=9s",
		"TOKEND_DRAIN_TIMEOUT=5s", "TOKEND_LOG_LEVEL=debug", "TOKEND_LOG_FORMAT=text",
	}
	jwt := em.Org(0).JWT()
	t.Run("plaintext", func(t *testing.T) {
		s := invocation{args: []string{"serve", "--drain-delay=0s"}, env: append(env[:len(env):len(env)], "TOKEND_PLAINTEXT=true")}.await(t, em)
		if got := rest(t, http.MethodPost, onLoopback(s.http), "Authorization", "JWT "+jwt); got.token() == "" {
			t.Errorf("%+v", got)
		}
		poll(t, "the call's line in the log, as text", func() bool { return strings.Contains(s.stderr.String(), "level=DEBUG msg=call ") })
		if !strings.Contains(s.stderr.String(), " tls=off ") {
			t.Errorf("it does not say that it has no TLS:\n%s", s.stderr)
		}
	})
	t.Run("mTLS", func(t *testing.T) {
		s := invocation{args: []string{"serve", "--drain-delay=0s"}, env: append(env[:len(env):len(env)],
			"TOKEND_TLS_CERT_FILE="+certs.serverCert, "TOKEND_TLS_KEY_FILE="+certs.serverKey, "TOKEND_TLS_CLIENT_CA_FILE="+certs.caFile)}.await(t, em)
		client := newHTTPClient(t, &tls.Config{RootCAs: certs.pool, Certificates: []tls.Certificate{certs.client}})
		got, err := do(client, newRequest(t, http.MethodPost, "https://"+onLoopback(s.http)+restPath, "", "Authorization", "JWT "+jwt))
		if err != nil || got.token() == "" {
			t.Errorf("%v, %+v", err, got)
		}
		if !strings.Contains(s.stderr.String(), " tls=mutual ") {
			t.Errorf("it does not say that it has mTLS:\n%s", s.stderr)
		}
	})
}

// --plaintext permits what would be refused without it.
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

// Each listener can be off.
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
