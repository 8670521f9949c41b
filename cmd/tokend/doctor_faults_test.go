//go:build unix

package main_test

import (
	"crypto/x509"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

// no process listens on that port.
const unused = "127.0.0.1:1"

// illness is a fault, and what doctor has to say of it. Nothing else may be failed.
type illness struct {
	name    string
	atlas   emulator.Config
	infect  func(t *testing.T, p *patient)
	check   string // that fails
	detail  string // pattern
	remedy  string // that the remedy has in it
	skipped []string
	healthy []string // checks that must still pass
}

var illnesses = []illness{
	{
		name: "another authority for Atlas", atlas: emulator.Config{Certificate: emulator.SelfSignedCertificate},
		check: "atlas TLS", detail: "unknown authority", remedy: "--atlas-ca-file",
		skipped: []string{"atlas API", "atlas clock", "login acme", "login other"}, healthy: []string{"atlas TCP", "port grpc"},
	},
	{
		name: "Atlas's certificate has expired", atlas: emulator.Config{Certificate: emulator.ExpiredCertificate},
		check: "atlas TLS", detail: "certificate has expired", remedy: "clock",
		skipped: []string{"atlas API", "atlas clock", "login acme", "login other"},
	},
	{
		name: "the certificate of the service has expired",
		infect: func(t *testing.T, p *patient) {
			p.certs.issue(t, p.certs.serverCert, p.certs.serverKey, func(cert *x509.Certificate) {
				cert.DNSNames, cert.NotBefore, cert.NotAfter = []string{"localhost"}, time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
			})
		},
		check: "--tls-cert-file and --tls-key-file", detail: "the certificate expired at", remedy: "valid now",
		healthy: []string{"login acme", "port grpc"},
	},
	{
		name:  "the clock is behind",
		atlas: emulator.Config{Now: func() time.Time { return time.Now().Add(10 * time.Minute) }},
		check: "atlas clock", detail: `clock is (10m0|9m59)s behind Atlas's`, remedy: "NTP", healthy: []string{"atlas API", "login acme"},
	},
	{
		name:  "the clock is ahead",
		atlas: emulator.Config{Now: func() time.Time { return time.Now().Add(-10 * time.Minute) }},
		check: "atlas clock", detail: `clock is (10m0|9m59)s ahead of Atlas's`, remedy: "NTP", healthy: []string{"atlas API", "login acme"},
	},
	{
		name: "a userauthtoken that Atlas refuses",
		infect: func(t *testing.T, p *patient) {
			p.usePolicy(t, p.secretFile(t, "planted-wrong-secret"), p.secretFile(t, p.atlas.Org(0).UserAuthToken()))
		},
		check: "login acme", detail: `refuses the userauthtoken in /.*/secret \(HTTP 400\)`, remedy: "valid userauthtoken", healthy: []string{"login other"},
	},
	{
		name:   "another password of Redis",
		infect: func(t *testing.T, p *patient) { p.useRedis(t, "planted-other-password") },
		check:  "redis login", detail: "WRONGPASS", remedy: "--cache-redis-password-file", skipped: []string{"redis scripts"},
		healthy: []string{"login acme"},
	},
	{
		name: "a userauthtoken with more in its file",
		infect: func(t *testing.T, p *patient) {
			p.usePolicy(t, p.secretFile(t, "planted secret"), p.secretFile(t, p.atlas.Org(0).UserAuthToken()))
		},
		check: "--policy-file", detail: "profile acme: .*it must contain the userauthtoken and nothing else", skipped: []string{"login acme"},
		healthy: []string{"login other"},
	},
	{
		name:   "a password of Redis on two lines",
		infect: func(t *testing.T, p *patient) { p.useRedis(t, "planted-other\npassword") },
		check:  "--cache-redis-password-file", detail: "it must contain the password, on one line",
		skipped: []string{"redis login", "redis scripts"}, healthy: []string{"login acme"},
	},
	{
		name: "Atlas throttles a login",
		infect: func(_ *testing.T, p *patient) {
			p.atlas.Inject(emulator.Fault{On: emulator.Login, Status: 429, Times: 1})
		},
		check: "login (?:acme|other)", detail: `throttles logins \(HTTP 429\)`, remedy: "Wait for 1s", healthy: []string{"atlas API"},
	},
	{
		name:   "a redirect in place of Atlas",
		infect: func(_ *testing.T, p *patient) { p.atlas.Inject(emulator.Fault{On: emulator.Other, Status: 302}) },
		check:  "atlas API", detail: "HTTP 302: a redirect", remedy: "--atlas-url", healthy: []string{"login acme"},
	},
	{
		name:   "an issuer without keys",
		infect: func(_ *testing.T, p *patient) { p.issuer.Publish(nil) },
		check:  "issuer https://127.0.0.1", detail: "publishes no key", remedy: "RSA", healthy: []string{"login other"},
	},
	{
		name: "the file of a secret is missing",
		infect: func(t *testing.T, p *patient) {
			p.usePolicy(t, filepath.Join(t.TempDir(), "missing"), p.secretFile(t, p.atlas.Org(0).UserAuthToken()))
		},
		check: "--policy-file", detail: `policy\.yaml:2: profile acme: .*no such file`, remedy: "path", skipped: []string{"login acme"},
		healthy: []string{"login other"},
	},
	{
		name:   "a directory in place of a file",
		infect: func(t *testing.T, p *patient) { p.settings["atlas-ca-file"] = t.TempDir() },
		check:  "--atlas-ca-file", detail: "not a regular file", remedy: "PEM", healthy: []string{"atlas TCP", "port http"},
		skipped: []string{"atlas TLS", "atlas API", "atlas clock", "login acme", "login other"},
	},
	{
		name: "a port is taken",
		infect: func(t *testing.T, p *patient) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			p.settings["http-addr"], p.settings["admin-addr"] = l.Addr().String(), ""
		},
		check: "port http", detail: "is in use", remedy: "--http-addr", healthy: []string{"port grpc", "login acme"},
	},
	{
		name:   "a host that unused knows",
		infect: func(_ *testing.T, p *patient) { p.settings["atlas-url"] = "https://nonexistent.invalid/v1" },
		check:  "atlas DNS", detail: "lookup nonexistent.invalid", remedy: "--atlas-url",
		skipped: []string{"atlas TCP", "atlas TLS", "atlas API", "atlas clock", "login acme", "login other"}, healthy: []string{"port admin"},
	},
	{
		name: "a proxy that is down",
		infect: func(_ *testing.T, p *patient) {
			p.secrets = append(p.secrets, "planted-proxy-password")
			p.settings["atlas-url"], p.env = "https://atlas.invalid/v1", []string{"HTTPS_PROXY=http://user:planted-proxy-password@" + unused}
		},
		check: "atlas TCP", detail: "cannot connect to the proxy: .*refused", remedy: "HTTPS_PROXY", healthy: []string{"atlas DNS"},
		skipped: []string{"atlas TLS", "atlas API", "atlas clock", "login acme", "login other"},
	},
	{
		name: "a typing error in the policy",
		infect: func(t *testing.T, p *patient) {
			p.settings["policy-file"] = writeFile(t, "policy.yaml", []byte("callers:\n  - {dns_san: a.internal, allows: [CreateToken], allow: [CreateToken], profile: passthrough}\n"))
			p.settings["oidc-ca-file"] = ""
		},
		check: "--policy-file", detail: `policy\.yaml:2: field allows not found`, remedy: "policy", skipped: []string{"profiles and issuers"},
		healthy: []string{"atlas clock"},
	},
	{
		name:   "an issuer is down",
		infect: func(_ *testing.T, p *patient) { p.issuer.Close() },
		check:  "issuer https://127.0.0.1", detail: "refused", remedy: "issuer", healthy: []string{"login other"},
	},
	{
		name:   "another authority for an issuer",
		infect: func(_ *testing.T, p *patient) { p.settings["oidc-ca-file"] = p.certs.caFile },
		check:  "issuer https://127.0.0.1", detail: "unknown authority", remedy: "--oidc-ca-file", healthy: []string{"login other"},
	},
	{
		name:   "Atlas is down",
		infect: func(_ *testing.T, p *patient) { p.settings["atlas-url"] = "https://" + unused + "/v1" },
		check:  "atlas TCP", detail: "cannot connect to Atlas: .*refused", remedy: "firewalls", healthy: []string{"atlas DNS"},
		skipped: []string{"atlas TLS", "atlas API", "atlas clock", "login acme", "login other"},
	},
	{
		name:   "Atlas fails",
		infect: func(_ *testing.T, p *patient) { p.atlas.Inject(emulator.Fault{On: emulator.Other, Status: 503}) },
		check:  "atlas API", detail: "HTTP 503", remedy: "Wait", healthy: []string{"login acme"},
	},
}

// Doctor names each fault, says what to do about it, and still checks the rest.
func TestDoctorNamesTheFault(t *testing.T) {
	t.Parallel()
	for _, ill := range illnesses {
		t.Run(ill.name, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t, ill.atlas)
			if ill.infect != nil {
				ill.infect(t, p)
			}
			got := p.examine(t)
			defer func() {
				if t.Failed() {
					t.Logf("%s%s", got.stdout, got.stderr)
				}
			}()
			if got.code != 1 || !strings.HasPrefix(got.stderr, "tokend: 1 of ") {
				t.Errorf("exit status %d", got.code)
			}
			fault := regexp.MustCompile(`(?m)^✗  ` + ill.check + `.*? +.*` + ill.detail + `.*\n +→ .*` + ill.remedy + `.*\.$`)
			if !fault.MatchString(got.stdout) || len(regexp.MustCompile(`(?m)^✗  `).FindAllString(got.stdout, -1)) != 1 {
				t.Errorf("it does not say that %s failed and nothing else, in terms of %s", ill.check, fault)
			}
			var skipped []string
			for _, match := range regexp.MustCompile(`(?m)^-  (.*?)  +not checked, because `).FindAllStringSubmatch(got.stdout, -1) {
				skipped = append(skipped, match[1])
			}
			if !slices.Equal(skipped, ill.skipped) {
				t.Errorf("skipped are %q, want %q", skipped, ill.skipped)
			}
			for _, check := range ill.healthy {
				if !strings.Contains(got.stdout, "\n✓  "+check+" ") {
					t.Errorf("%s is not well", check)
				}
			}
		})
	}
}

// A userauthtoken that several profiles share and Atlas refuses is tried once.
func TestDoctorRepeatsNoRefusedLogin(t *testing.T) {
	t.Parallel()
	p := newPatient(t, emulator.Config{})
	p.usePolicy(t, p.secretFile(t, "planted-wrong-secret"), p.secretFile(t, "planted-wrong-secret"))
	got := p.examine(t)
	if got.code != 1 || strings.Count(got.stdout, "(HTTP 400)") != 2 {
		t.Errorf("exit status %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	if n := p.atlas.Calls(emulator.Login); n != 1 {
		t.Errorf("%d logins", n)
	}
}

// An Atlas that does not answer holds up no other check, and its own no longer than it may take.
func TestDoctorIsBounded(t *testing.T) {
	t.Parallel()
	p := newPatient(t, emulator.Config{})
	t.Cleanup(p.atlas.Hold(emulator.Any).Release)
	p.settings["timeout"] = "3s"
	p.settings["policy-file"], p.settings["oidc-ca-file"] = "", ""
	got, found := p.examineJSON(t)
	for _, f := range found.Checks {
		want := "ok"
		switch f.Check {
		case "atlas TLS":
			want = "failed"
			if f.Detail != "no complete answer in time" {
				t.Errorf("%+v", f)
			}
		case "atlas API", "atlas clock":
			want = "skipped"
		}
		if f.Status != want {
			t.Errorf("%+v, want %s", f, want)
		}
	}
	if got.code != 1 {
		t.Errorf("exit status %d", got.code)
	}
}
