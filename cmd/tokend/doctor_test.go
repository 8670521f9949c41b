//go:build unix

package main_test

import (
	"bufio"
	"crypto"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth/authtest"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/testcert"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
)

// patient is a set-up in which all is well, for a test to break.
type patient struct {
	atlas    *emulator.Emulator
	issuer   *authtest.Issuer
	certs    certificates
	settings map[string]string
	env      []string
	secrets  []string // that no output may have in it
}

const redisPassword = "planted-redis-password"

// newPatient has a policy with two profiles and an issuer, and TLS in both directions. It has no
// Redis yet.
func newPatient(t *testing.T, cfg emulator.Config) *patient {
	t.Helper()
	em, err := emulator.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	p := &patient{atlas: em, issuer: authtest.NewIssuer(t), certs: makeCertificates(t), secrets: []string{redisPassword}}
	p.issuer.Publish(map[string]crypto.Signer{"k": authtest.NewKey(t)})
	p.settings = map[string]string{
		"grpc-addr": "127.0.0.1:0", "http-addr": "127.0.0.1:0", "admin-addr": "127.0.0.1:0", "timeout": "20s",
		"tls-cert-file": p.certs.serverCert, "tls-key-file": p.certs.serverKey, "tls-client-ca-file": p.certs.caFile,
		"atlas-url": em.URL(), "atlas-ca-file": writeFile(t, "atlas-ca.pem", em.CAPEM()),
		"oidc-ca-file": writeFile(t, "oidc-ca.pem", testcert.EncodePEM("CERTIFICATE", p.issuer.Certificate().Raw)),
	}
	p.usePolicy(t, p.secretFile(t, em.Org(0).UserAuthToken()), p.secretFile(t, em.Org(1).UserAuthToken()))
	return p
}

// secretFile has a userauthtoken in it.
func (p *patient) secretFile(t *testing.T, secret string) string {
	t.Helper()
	p.secrets = append(p.secrets, secret)
	return writeFile(t, "secret", []byte(secret+"\n"))
}

// usePolicy has a policy in which acme and other have these files.
func (p *patient) usePolicy(t *testing.T, acme, other string) {
	t.Helper()
	p.settings["policy-file"] = writeFile(t, "policy.yaml", fmt.Appendf(nil, `profiles:
  acme: {userauthtoken_file: %s}
  other: {userauthtoken_file: %s}
callers:
  - {dns_san: web.internal, allow: [CreateToken], profile: acme}
  - {oidc: {issuer: "%s", audience: tokend, subject: "ci-*"}, allow: [CreateToken], profile: other}
`, acme, other, p.issuer.URL))
}

// useRedis has tokens remembered in a Redis that wants redisPassword, and is given password.
func (p *patient) useRedis(t *testing.T, password string) {
	t.Helper()
	p.settings["cache-ttl"] = "30s"
	p.settings["cache-redis-url"] = redistest.Start(t, "--requirepass", redisPassword).URL()
	p.settings["cache-redis-password-file"] = writeFile(t, "password", []byte(password+"\n"))
}

// examine runs doctor.
func (p *patient) examine(t *testing.T, args ...string) result {
	t.Helper()
	args = append([]string{"doctor"}, args...)
	for _, flag := range slices.Sorted(maps.Keys(p.settings)) {
		args = append(args, "--"+flag+"="+p.settings[flag])
	}
	got := invocation{args: args, env: p.env}.run(t)
	for _, secret := range p.secrets {
		if strings.Contains(got.stdout+got.stderr, secret) {
			t.Errorf("a secret is told:\n%s%s", got.stdout, got.stderr)
		}
	}
	return got
}

// diagnosed is what doctor prints as JSON.
type diagnosed struct {
	OK     bool `json:"ok"`
	Checks []struct{ Check, Status, Detail, Remedy string }
}

// examineJSON is examine for programs, which find the same as people.
func (p *patient) examineJSON(t *testing.T) (result, diagnosed) {
	t.Helper()
	got := p.examine(t, "--json")
	var found diagnosed
	decoder := json.NewDecoder(strings.NewReader(got.stdout))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&found); err != nil || decoder.Decode(&struct{}{}) != io.EOF {
		t.Fatalf("not one JSON object: %v\n%s", err, got.stdout)
	}
	if found.OK != (got.code == 0) {
		t.Errorf("ok is %v, and the exit status %d", found.OK, got.code)
	}
	return got, found
}

// Where all is well every check says so, and each login is one.
func TestDoctorHealthy(t *testing.T) {
	t.Parallel()
	p := newPatient(t, emulator.Config{})
	p.useRedis(t, redisPassword)
	got := p.examine(t)
	if got.code != 0 || got.stderr != "" {
		t.Errorf("exit status %d\n%s", got.code, got.stderr)
	}
	checks := []string{
		"settings", "--tls-cert-file", "--tls-key-file", "--tls-client-ca-file", "--atlas-ca-file", "--policy-file", "--oidc-ca-file",
		"--cache-redis-password-file", "atlas DNS", "atlas TCP", "atlas TLS", "atlas API", "atlas clock", "login acme", "login other",
		"issuer " + p.issuer.URL, "redis login", "redis scripts", "port grpc", "port http", "port admin",
	}
	lines := strings.Split(got.stdout, "\n")
	for i, check := range checks {
		if i >= len(lines) || !strings.HasPrefix(lines[i], "✓  "+check+" ") {
			t.Fatalf("line %d is not ✓ for %s:\n%s", i+1, check, got.stdout)
		}
	}
	if rest := strings.Join(lines[len(checks):], "\n"); rest != fmt.Sprintf("\n%d ✓  0 !  0 ✗  0 not checked\n", len(checks)) {
		t.Errorf("it ends with %q", rest)
	}
	if n := p.atlas.Calls(emulator.Login); n != 2 {
		t.Errorf("%d logins, want one for each profile", n)
	}
	if n := p.atlas.Calls(emulator.Create) + p.atlas.Calls(emulator.Delete); n != 0 {
		t.Errorf("%d calls for a token", n)
	}

	_, found := p.examineJSON(t)
	var names []string
	for _, f := range found.Checks {
		names = append(names, f.Check)
		if f.Status != "ok" || f.Detail == "" || f.Remedy != "" {
			t.Errorf("%+v", f)
		}
	}
	if !slices.Equal(names, checks) {
		t.Errorf("checks %q, want %q", names, checks)
	}
}

// Through a proxy the way to Atlas is found to be well too, and the proxy's password is not told.
func TestDoctorThroughProxy(t *testing.T) {
	t.Parallel()
	p := newPatient(t, emulator.Config{Certificate: emulator.OtherHostCertificate})
	p.settings["atlas-url"] = "https://atlas.invalid/v1" // which the certificate names, and only the proxy finds
	p.settings["oidc-ca-file"], p.settings["policy-file"] = "", ""
	p.settings["atlas-userauthtoken-file"] = p.secretFile(t, p.atlas.Org(0).UserAuthToken())
	p.secrets = append(p.secrets, "planted-proxy-password")
	address, _, _ := strings.Cut(strings.TrimPrefix(p.atlas.URL(), "https://"), "/")
	p.env = []string{"HTTPS_PROXY=http://user:planted-proxy-password@" + startProxy(t, address)}
	got := p.examine(t)
	if got.code != 0 || strings.Contains(got.stdout, "\n!") || !regexp.MustCompile(`✓  login default +Atlas accepts`).MatchString(got.stdout) {
		t.Errorf("exit status %d\n%s%s", got.code, got.stdout, got.stderr)
	}
}

// startProxy returns the address of a proxy that connects every client to one address.
func startProxy(t *testing.T, to string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		work.Wait()
	})
	tunnel := func(conn net.Conn) {
		defer conn.Close()
		reader := bufio.NewReader(conn)
		if _, err := http.ReadRequest(reader); err != nil {
			return // doctor checks whether the port is open
		}
		upstream, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n")
		work.Go(func() {
			_, _ = io.Copy(upstream, reader)
			_ = upstream.Close()
		})
		_, _ = io.Copy(conn, upstream)
	}
	work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() { tunnel(conn) })
		}
	})
	return l.Addr().String()
}

// Beside a tokend that serves, doctor does not take its ports for taken.
func TestDoctorBesideServe(t *testing.T) {
	t.Parallel()
	s := startServe(t)
	p := newPatient(t, emulator.Config{})
	p.settings["grpc-addr"], p.settings["http-addr"], p.settings["admin-addr"] = s.grpc, s.http, s.admin
	got := p.examine(t)
	for _, port := range []string{"grpc", "http", "admin"} {
		if !regexp.MustCompile(`(?m)^!  port ` + port + ` +127\.0\.0\.1:\d+ is in use, and a tokend is alive`).MatchString(got.stdout) {
			t.Errorf("port %s is not in doubt", port)
		}
	}
	if got.code != 0 {
		t.Errorf("exit status %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	s.signal(t, syscall.SIGTERM)
	if code := s.awaitEnd(t); code != 0 {
		t.Errorf("the other one's exit status is %d", code)
	}
}

// What works and is not as it should be is a warning, and no failure.
func TestDoctorWarnings(t *testing.T) {
	t.Parallel()
	p := newPatient(t, emulator.Config{})
	secret := p.secretFile(t, p.atlas.Org(0).UserAuthToken())
	p.usePolicy(t, secret, p.secretFile(t, p.atlas.Org(1).UserAuthToken()))
	for file, mode := range map[string]os.FileMode{p.settings["policy-file"]: 0o602, p.settings["tls-key-file"]: 0o604, secret: 0o604} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
	}
	chain, err := os.ReadFile(p.certs.serverCert)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := os.ReadFile(makeCertificates(t).caFile)
	if err != nil {
		t.Fatal(err)
	}
	p.settings["tls-cert-file"] = writeFile(t, "chain.pem", append(chain, stranger...))
	_, found := p.examineJSON(t)
	want := map[string]string{
		"--policy-file": "every user of this machine can change it", "--tls-key-file": "every user of this machine can read the secret",
		"--tls-cert-file": "has not signed the one before", "profile acme": secret + ": every user of this machine can read the secret",
	}
	for _, f := range found.Checks {
		switch text := want[f.Check]; {
		case text == "" && f.Status != "ok", text != "" && (f.Status != "warning" || !strings.Contains(f.Detail, text)):
			t.Errorf("%+v", f)
		}
		delete(want, f.Check)
	}
	if len(want) > 0 || !found.OK {
		t.Errorf("no finding about %q, or a failure", want)
	}
}

// A secret in the place of something else is not told either.
func TestDoctorTellsNoSecret(t *testing.T) {
	t.Parallel()
	p := newPatient(t, emulator.Config{})
	p.secrets = append(p.secrets, "planted")
	p.settings["policy-file"], p.settings["oidc-ca-file"] = "", ""
	p.settings["atlas-userauthtoken-file"] = "planted-userauthtoken"
	p.settings["atlas-url"] = "https://user:planted-password@127.0.0.1/v1"
	p.settings["cache-ttl"], p.settings["cache-redis-url"] = "30s", "redis://user:planted-password@127.0.0.1:1"
	p.settings["cache-redis-password-file"] = "planted-password"
	got := p.examine(t)
	for _, check := range []string{"--atlas-url", "--atlas-userauthtoken-file", "--cache-redis-url", "--cache-redis-password-file"} {
		if !strings.Contains("\n"+got.stdout, "\n✗  "+check+" ") {
			t.Errorf("%s is not wrong", check)
		}
	}
	if got.code != 1 || t.Failed() {
		t.Errorf("exit status %d\n%s%s", got.code, got.stdout, got.stderr)
	}
}
