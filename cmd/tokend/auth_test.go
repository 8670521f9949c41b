//go:build unix

package main_test

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

// certificateCall makes a REST call with a client certificate and no Atlas secret.
func certificateCall(t *testing.T, s *service, certs certificates, method string) answer {
	t.Helper()
	client := newHTTPClient(t, &tls.Config{RootCAs: certs.pool, Certificates: []tls.Certificate{certs.client}})
	defer client.CloseIdleConnections()
	got, err := do(client, newRequest(t, method, "https://"+s.http+restPath, ""))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// replace replaces a file atomically.
func replace(t *testing.T, path, content string) {
	t.Helper()
	next := path + ".next"
	if err := os.WriteFile(next, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
}

// TestPolicyFile checks that a caller of the policy needs no Atlas secret, that the policy can be
// replaced, and that one with a missing secret is used once the secret is there. TestHangup has an
// invalid one.
func TestPolicyFile(t *testing.T) {
	t.Parallel()
	certs, em := makeCertificates(t), startAtlas(t)
	secret := writeFile(t, "secret", []byte(em.Org(0).UserAuthToken()+"\n"))
	audit := filepath.Join(t.TempDir(), "audit.json")
	policy := func(allow string) string {
		return fmt.Sprintf("profiles:\n  acme: {userauthtoken_file: %s}\ncallers:\n  - {dns_san: web.internal, allow: [%s], profile: acme}\n", secret, allow)
	}
	file := writeFile(t, "policy.yaml", []byte(policy("CreateToken")))
	s := invocation{args: certs.flags("--policy-file="+file, "--audit-file="+audit)}.startServe(t, em)

	if got := certificateCall(t, s, certs, http.MethodPost); got.token() == "" || got.token() != em.Org(0).EphemeralToken() {
		t.Errorf("create: %d %s", got.status, got.body)
	}
	if got := certificateCall(t, s, certs, http.MethodDelete); got.status != http.StatusForbidden {
		t.Errorf("a delete that the policy does not allow: %d %s", got.status, got.body)
	}
	overRPC, err := rpcToken(t, s.grpc, &tls.Config{RootCAs: certs.pool, Certificates: []tls.Certificate{certs.client}})
	if err != nil || overRPC != em.Org(0).EphemeralToken() {
		t.Error("gRPC gave another token")
	}

	second := filepath.Join(t.TempDir(), "second")
	replace(t, file, strings.ReplaceAll(policy("CreateToken, DeleteToken"), secret, second))
	poll(t, "the missing secret to be reported", func() bool { return strings.Contains(s.stderr.String(), file+":2: profile acme: ") })
	if got := certificateCall(t, s, certs, http.MethodDelete); got.status != http.StatusForbidden {
		t.Errorf("with a missing secret, the new policy is in force: %d %s", got.status, got.body)
	}
	replace(t, second, em.Org(0).UserAuthToken()) // the policy file stays the same
	poll(t, "the new policy to be in force", func() bool { return certificateCall(t, s, certs, http.MethodDelete).status == http.StatusNoContent })

	records, err := os.ReadFile(audit)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(records), "\n"); n < 4 {
		t.Errorf("the audit file has %d records", n)
	}
	if strings.Contains(string(records)+s.stderr.String(), em.Org(0).UserAuthToken()) {
		t.Error("the secret is in the audit or the log")
	}
}

// TestConfigDoesNotLogIn checks that config makes no login: Atlas may lock an account after a few.
func TestConfigDoesNotLogIn(t *testing.T) {
	t.Parallel()
	certs, em := makeCertificates(t), startAtlas(t)
	secret := writeFile(t, "secret", []byte(em.Org(0).UserAuthToken()))
	args := slices.Concat([]string{"config"}, certs.flags("--atlas-userauthtoken-file="+secret), atlasFlags(t, em))
	if got := tokend(t, args...); got.code != 0 || em.Calls(emulator.Any) != 0 {
		t.Errorf("exit status %d, %d calls of Atlas\n%s", got.code, em.Calls(emulator.Any), got.stderr)
	}
}

// TestExplain checks what config prints about the policy.
func TestExplain(t *testing.T) {
	t.Parallel()
	policy := writeFile(t, "policy.yaml", []byte("callers:\n  - {atlas_jwt: true, allow: [CreateToken], profile: passthrough}\n"))
	if got := tokend(t, "config", "--policy-file="+policy); got.code != 0 || !strings.Contains(got.stdout, "rule 1  line 2  atlas_jwt") {
		t.Errorf("config: %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	for caller, want := range map[string]struct {
		code int
		text string
	}{
		"atlas_jwt":      {0, "atlas_jwt matches rule 1 (" + policy + ":2)"},
		"dns:a.internal": {1, "matches none of the 1 rules"},
	} {
		if got := tokend(t, "config", "--policy-file="+policy, "--explain="+caller); got.code != want.code || !strings.Contains(got.stdout, want.text) || strings.Count(got.stdout, "\n") != 1 {
			t.Errorf("--explain %s: %d\n%s%s", caller, got.code, got.stdout, got.stderr)
		}
	}
	got := tokend(t, "config", "--policy-file="+policy, "--explain=a.internal")
	if got.code != 64 || got.stdout != "" || !strings.Contains(got.stderr, `--explain: "a.internal" is not a caller: give spiffe://`) {
		t.Errorf("not a caller: %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	for _, question := range []string{"--explain=atlas_jwt", "--expect-file=" + policy} {
		if got := tokend(t, "config", question); got.code != 64 || got.stderr != "tokend: --policy-file: it must be set\n" {
			t.Errorf("%s without a policy: %d\n%s%s", question, got.code, got.stdout, got.stderr)
		}
	}
}

// TestExpectFile checks what config says about expectations that the policy meets, does not meet,
// and that are malformed.
func TestExpectFile(t *testing.T) {
	t.Parallel()
	// The secret does not exist, and no certificate is configured.
	policy := writeFile(t, "policy.yaml", []byte(`profiles: {acme: {userauthtoken_file: /no/such/secret}}
callers:
  - {dns_san: web.internal, allow: [CreateToken], profile: acme}
`))
	for name, tc := range map[string]struct {
		expected string
		code     int
		want     string // FILE is the file of expectations
	}{
		"met": {`
- {caller: dns:web.internal, method: CreateToken, profile: acme}
- {caller: dns:web.internal, method: DeleteToken, denied: true}
- {caller: atlas_jwt, method: CreateToken, denied: true}
`, 0, "The policy meets the 3 expectations in FILE.\n"},
		"not met": {`
- {caller: dns:other.internal, method: CreateToken, profile: acme}
- {caller: dns:web.internal, method: CreateToken, denied: true}
- {caller: dns:web.internal, method: CreateToken, profile: passthrough}
`, 1, `tokend: 3 errors:
  FILE:2: CreateToken: want profile acme, but dns:other.internal matches none of the 1 rules in POLICY: it may do nothing; correct this line or the policy
  FILE:3: CreateToken: want denied, but dns:web.internal matches rule 1 (POLICY:3), dns_san web.internal: it may call CreateToken, as profile acme; correct this line or the policy
  FILE:4: CreateToken: want profile passthrough, but dns:web.internal matches rule 1 (POLICY:3), dns_san web.internal: it may call CreateToken, as profile acme; correct this line or the policy
`},
		"malformed": {`
- {caller: web.internal, method: CreateToken, denied: true}
- {caller: dns:web.internal, method: Create, profile: acme, denied: true}
- {caller: dns:web.internal, method: CreateToken}
`, 64, `tokend: 4 errors:
  --expect-file: FILE:2: caller "web.internal" is not a caller: give spiffe://TRUST-DOMAIN/PATH, dns:NAME, oidc:ISSUER#SUBJECT or atlas_jwt
  --expect-file: FILE:3: unknown method "Create": there are CreateToken, DeleteToken
  --expect-file: FILE:3: give either a profile or denied: true
  --expect-file: FILE:4: give either a profile or denied: true
`},
		"unknown key": {"- {caller: atlas_jwt, method: CreateToken, deny: true}\n", 64, "tokend: --expect-file: FILE:1: field deny not found\n"},
		"not a list":  {"caller: atlas_jwt\n", 64, "tokend: --expect-file: FILE:1: cannot construct !!map into auth.expectationList\n"},
		"empty list":  {"[]\n", 64, "tokend: --expect-file: FILE:1: there are no expectations\n"},
		"empty file":  {"", 1, "tokend: --expect-file: FILE: the file is empty\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := writeFile(t, "expected.yaml", []byte(tc.expected))
			got := tokend(t, "config", "--policy-file="+policy, "--expect-file="+file)
			if want := strings.NewReplacer("FILE", file, "POLICY", policy).Replace(tc.want); got.code != tc.code || got.stdout+got.stderr != want {
				t.Errorf("exit status %d, want %d:\n%s%s\nwant:\n%s", got.code, tc.code, got.stdout, got.stderr, want)
			}
		})
	}
}

// TestFault35SecretFile checks that an empty, truncated or deleted file leaves the last secret that
// Atlas accepted in use.
func TestFault35SecretFile(t *testing.T) {
	t.Parallel()
	certs, em := makeCertificates(t), startAtlas(t)
	file := writeFile(t, "secret", []byte(em.Org(0).UserAuthToken()))
	s := invocation{args: certs.flags("--atlas-userauthtoken-file=" + file)}.startServe(t, em)
	works := func(when string) {
		t.Helper()
		em.Org(0).RevokeJWTs() // so that the secret is needed
		if got := certificateCall(t, s, certs, http.MethodPost); got.token() == "" {
			t.Errorf("%s: %d %s", when, got.status, got.body)
		}
		em.Org(0).RevokeJWTs()
		overRPC, err := rpcToken(t, s.grpc, &tls.Config{RootCAs: certs.pool, Certificates: []tls.Certificate{certs.client}})
		if err != nil || overRPC != em.Org(0).EphemeralToken() {
			t.Errorf("%s: gRPC gave another token", when)
		}
	}
	works("at first")
	replace(t, file, "")
	poll(t, "the empty file to be reported", func() bool {
		return strings.Contains(s.stderr.String(), `the last good one stays","profile":"default","file":"`+file+`","what":"userauthtoken","cause":"`)
	})
	works("with an empty file")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	works("without the file")
	replace(t, file, em.Org(0).UserAuthToken()[:20]) // in half, and that is how it stays
	poll(t, "half of a secret to be taken for one", func() bool { return strings.Contains(s.stderr.String(), "userauthtoken replaced") })
	works("with half of it")

	em.Org(0).RotateUserAuthToken()
	em.Org(0).RevokeJWTs()
	if got := certificateCall(t, s, certs, http.MethodPost); got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, "SERVICE_CREDENTIAL_REJECTED") {
		t.Errorf("with a secret that Atlas has dropped: %d %s", got.status, got.body)
	}
	if got := s.readyz(t); !strings.Contains(got, "profile default") {
		t.Errorf("/readyz says %q", got)
	}
	logins := em.Calls(emulator.Login)
	replace(t, file, em.Org(0).UserAuthToken())
	poll(t, "the new secret to be used", func() bool { return certificateCall(t, s, certs, http.MethodPost).token() != "" })
	if n := em.Calls(emulator.Login) - logins; n != 1 {
		t.Errorf("%d logins with the new secret, want 1", n)
	}
}

// TestFault77RefusedSecret checks that one login is made at the start, that a wrong secret makes
// the replica unready, with the reason in /readyz and the metrics, and that a good one is used at
// once.
func TestFault77RefusedSecret(t *testing.T) {
	t.Parallel()
	certs, em := makeCertificates(t), startAtlas(t)
	file := writeFile(t, "secret", []byte("wrong"))
	args := slices.Concat([]string{"serve", "--drain-delay=0s"}, freePorts, atlasFlags(t, em), certs.flags("--atlas-userauthtoken-file="+file))
	server := invocation{args: args}.awaitServing(t, em)
	poll(t, "/readyz to name the profile", func() bool {
		got := server.readyz(t)
		if strings.HasPrefix(got, "200") {
			t.Fatalf("/readyz: %s", got)
		}
		return strings.HasPrefix(got, "503 refused by Atlas\nprofile default: ")
	})
	if metrics := probe(t, server.admin, "/metrics"); !strings.Contains(metrics, "\ntokend_identity_refused{profile=\"default\"} 1\n") {
		t.Error("the metric does not say that the profile is refused")
	}
	if n := em.Calls(emulator.Login); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
	replace(t, file, em.Org(0).UserAuthToken())
	poll(t, "the new secret to be used", func() bool { return strings.Contains(server.stderr.String(), "Atlas identity renewed") })
	client := newHTTPClient(t, nil) // one connection for all polls
	poll(t, "/readyz to be ready", func() bool {
		got, err := do(client, newRequest(t, http.MethodGet, "http://"+server.admin+"/readyz", ""))
		return err == nil && got.body == "ready\n"
	})
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
