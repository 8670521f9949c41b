//go:build unix

package main_test

import (
	"crypto"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth/authtest"
	"github.com/ForstaLabs/ephemeral-token-service/internal/spiffe/spiffetest"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/testcert"
)

// setting is a line of tokend config.
type setting struct{ flag, value, source string }

func readSettings(t *testing.T, in invocation) []setting {
	t.Helper()
	got := in.run(t)
	if got.code != 0 || got.stderr != "" {
		t.Fatalf("exit status %d\n%s", got.code, got.stderr)
	}
	var all []setting
	table, who, _ := strings.Cut(got.stdout, "\n\n")
	if who == "" {
		t.Error("config does not say who may call")
	}
	for line := range strings.Lines(table + "\n") {
		match := regexp.MustCompile(`^(--[a-z-]+)=(\S*) +# (\S+)\n$`).FindStringSubmatch(line)
		if match == nil {
			t.Fatalf("line %q", line)
		}
		all = append(all, setting{match[1], match[2], match[3]})
	}
	return all
}

// Every setting can be made by flag and by environment variable, the flag wins, and config says
// where each came from.
func TestConfig(t *testing.T) {
	t.Parallel()
	certs := makeCertificates(t)
	agent := spiffetest.StartAgent(t, spiffetest.NewTrustDomain(t, "prod.internal").Issue("/tokend"))
	issuer := authtest.NewIssuer(t) // which config asks, as it does the agent
	issuer.Publish(map[string]crypto.Signer{"k": authtest.NewKey(t)})
	issuerCA := writeFile(t, "issuer-ca.pem", testcert.EncodePEM("CERTIFICATE", issuer.Certificate().Raw))
	other := map[string]string{ // than the default, for each setting
		"--grpc-socket-mode": "0660",
		"--max-connections":  "7", "--caller-rate": "7", "--atlas-max-calls": "7", "--cache-ttl": "30s", "--cache-stale-if-error": "10m0s", "--cache-redis-url": "rediss://127.0.0.1:1",
		"--cache-redis-ca-file": certs.caFile, "--cache-redis-password-file": writeFile(t, "password", []byte("hunter2\n")),
		"--grpc-addr": "0.0.0.0:1", "--http-addr": "0.0.0.0:2", "--admin-addr": "0.0.0.0:3", "--drain-delay": "1s",
		"--drain-timeout": "1m0s",
		"--log-level":     "debug", "--log-format": "text", "--tls-cert-file": certs.serverCert, "--tls-key-file": certs.serverKey,
		"--tls-client-ca-file": certs.caFile, "--plaintext": "true", "--debug-pprof": "true", "--atlas-url": "https://atlas.example/v1",
		"--atlas-ca-file": certs.caFile, "--atlas-timeout": "3s",
		"--atlas-cert-file": certs.clientCert, "--atlas-key-file": certs.clientKey,
		"--atlas-userauthtoken-file": writeFile(t, "secret", []byte("secret\n")), "--audit-file": filepath.Join(t.TempDir(), "audit"),
		"--policy-file":  writeFile(t, "policy.yaml", []byte("callers: [{atlas_jwt: true, allow: [CreateToken], profile: passthrough}]\n")),
		"--oidc-ca-file": issuerCA, "--spiffe-socket": agent.Addr(),
		"--docs": "true", "--cors-origin": "https://app.example.com,http://localhost:3000",
	}
	withIssuer := writeFile(t, "issuer.yaml", []byte(strings.Join([]string{
		"profiles: {acme: {userauthtoken_file: " + other["--atlas-userauthtoken-file"] + "}}",
		`callers: [{oidc: {issuer: "` + issuer.URL + `", audience: a, subject: s}, allow: [CreateToken], profile: acme}]`,
	}, "\n")))
	defaults := readSettings(t, invocation{args: []string{"config"}})
	help := tokend(t, "serve", "--help").stdout
	if len(defaults) != len(other) || strings.Count(help, "\n      --") != len(other) {
		t.Errorf("config shows %d settings, serve's help %d, want %d", len(defaults), strings.Count(help, "\n      --"), len(other))
	}
	for _, s := range defaults {
		variable := "TOKEND_" + strings.ToUpper(strings.ReplaceAll(strings.TrimPrefix(s.flag, "--"), "-", "_"))
		if s.source != "default" {
			t.Errorf("by default: %+v", s)
		}
		in := invocation{args: []string{"config"}}
		needs := []string{}
		switch {
		case s.flag == "--atlas-cert-file":
			in.args = append(in.args, "--atlas-key-file="+certs.clientKey)
		case s.flag == "--atlas-key-file":
			in.args = append(in.args, "--atlas-cert-file="+certs.clientCert)
		case s.flag == "--oidc-ca-file":
			in.args = append(in.args, "--policy-file="+withIssuer)
		case strings.HasPrefix(s.flag, "--cache-redis-") && s.flag != "--cache-redis-url":
			in.args = append(in.args, "--cache-ttl=1s", "--cache-redis-url="+other["--cache-redis-url"])
		case strings.HasPrefix(s.flag, "--cache-") && s.flag != "--cache-ttl":
			in.args = append(in.args, "--cache-ttl=1s")
		case s.flag == "--grpc-socket-mode":
			in.args = append(in.args, "--grpc-addr=unix:/tmp/s")
		case s.flag == "--atlas-userauthtoken-file":
			needs = []string{"cert", "key", "client-ca"}
		case strings.HasPrefix(s.flag, "--tls-") || strings.HasSuffix(s.flag, "-addr"):
			needs = []string{"cert", "key"}
		}
		if len(needs) > 0 {
			for _, name := range needs {
				if flag := "--tls-" + name + "-file"; flag != s.flag {
					in.args = append(in.args, flag+"="+other[flag])
				}
			}
		}
		find := func(all []setting) setting {
			for _, found := range all {
				if found.flag == s.flag {
					return found
				}
			}
			return setting{}
		}
		in.env = []string{variable + "=" + other[s.flag]}
		if got, want := find(readSettings(t, in)), (setting{s.flag, other[s.flag], variable}); got != want || got.value == s.value {
			t.Errorf("from the environment: %+v, want %+v", got, want)
		}
		if strings.HasPrefix(s.flag, "--tls-") { // no other value would do
			continue
		}
		in.args = append(in.args, s.flag+"="+s.value)
		if strings.HasSuffix(s.flag, "-ca-file") || s.flag == "--atlas-cert-file" || s.flag == "--atlas-key-file" {
			continue // the default is none
		}
		if got, want := find(readSettings(t, in)), (setting{s.flag, s.value, "flag"}); got != want {
			t.Errorf("from both: %+v, want %+v", got, want)
		}
	}
}

func TestHealthcheck(t *testing.T) {
	t.Parallel()
	s := startServe(t)
	_, port, _ := strings.Cut(s.admin, ":")
	for _, addr := range []string{s.admin, ":" + port, "0.0.0.0:" + port, "localhost:" + port} {
		if got := tokend(t, "healthcheck", "--admin-addr="+addr); got != (result{0, "healthy\n", ""}) {
			t.Errorf("%s: %+v", addr, got)
		}
	}
	// It shares serve's environment in a container.
	shared := invocation{args: []string{"healthcheck"}, env: []string{"TOKEND_ADMIN_ADDR=" + s.admin, "TOKEND_LOG_LEVEL=debug", "TOKEND_ATLAS_URL=https://atlas.example/v1"}}
	if got := shared.run(t); got != (result{0, "healthy\n", ""}) {
		t.Errorf("from the environment: %+v", got)
	}

	s.signal(t, syscall.SIGTERM)
	s.awaitEnd(t)
	ill := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(ill.Close)
	for name, addr := range map[string]string{"nothing listens": s.admin, "another server listens": ill.Listener.Addr().String()} {
		got := tokend(t, "healthcheck", "--admin-addr="+addr)
		if got.code != 1 || got.stdout != "" || !strings.HasPrefix(got.stderr, "tokend: not healthy: ") || strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
