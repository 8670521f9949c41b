package auth_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/server/auth"
)

// TestPolicyMistakes has each mistake alone, and what is said of it.
func TestPolicyMistakes(t *testing.T) {
	const profiles = "profiles: {acme: {userauthtoken_file: /run/secrets/acme}}\ncallers:\n"
	// with is a policy with these rules, from line 3 on; the last one uses the profile.
	with := func(rules ...string) string {
		return profiles + "- " + strings.Join(rules, "\n- ") + "\n- {spiffe_id: spiffe://z/z, allow: [CreateToken], profile: acme}\n"
	}
	spiffe := func(id string) string {
		return with(fmt.Sprintf("{spiffe_id: %q, allow: [CreateToken], profile: acme}", id))
	}
	dns := func(name string) string {
		return with(fmt.Sprintf("{dns_san: %q, allow: [CreateToken], profile: acme}", name))
	}
	oidc := func(issuer, audience, subject string) string {
		return with(fmt.Sprintf("{oidc: {issuer: %q, audience: %q, subject: %q}, allow: [CreateToken], profile: acme}", issuer, audience, subject))
	}
	subject := func(s string) string { return oidc("https://i.internal", "tokend", s) }
	profile := func(text string) string {
		return "callers:\n- {dns_san: a.internal, allow: [CreateToken], profile: acme}\nprofiles:\n  " + text + "\n"
	}
	for _, tc := range []struct {
		name, policy string
		want         []string // one for each mistake: line: part of the text
	}{
		{"empty", "", []string{"1: the file is empty"}},
		{"comment only", "# nothing\n", []string{"1: the file is empty"}},
		{"null", "~\n", []string{"1: the file is empty"}},
		{"text", "hello\n", []string{"1: the policy must be a mapping"}},
		{"a list", "- a\n", []string{"1: the policy must be a mapping"}},
		{"not YAML", "callers: [\n", []string{"2: not YAML"}},
		{"not YAML after it", goodPolicy + "---\n[", []string{"18: not YAML"}},
		{"not UTF-8", "callers: \xff", []string{"1: the file is not UTF-8"}},
		{"too large", goodPolicy + strings.Repeat("#", 1<<20), []string{"1: the file is larger than 1 MiB"}},
		{"two documents", goodPolicy + "---\n" + goodPolicy, []string{"a second YAML document"}},
		{"an anchor", "callers: &x []\n", []string{"1: YAML's anchors"}},
		{"an alias", "profiles: &x {}\ncallers: *x\n", []string{"1: YAML's anchors", "2: YAML's anchors"}},
		{"a bomb", "a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\n", []string{"1: YAML's anchors", "2: YAML's anchors", "3: YAML's anchors"}},
		{"a tag", "callers: !!seq []\n", []string{"1: YAML's tags"}},
		{"a merge", with("{<<: {allow: [CreateToken]}, dns_san: a.internal, profile: acme}"), []string{"3: a key in rule 1 must be text", "3: rule 1 has no allow"}},
		{"unknown key", goodPolicy + "defaults: x\n", []string{`16: unknown key "defaults" in the policy`}},
		{"key twice", with("{dns_san: a.internal}")[len(profiles)-9:] + "callers: []\n", []string{"is twice in the policy", "has no allow", "has no profile", `profile "acme" in rule 2 is not defined`}},
		{"no callers", "profiles: {acme: {userauthtoken_file: /a}}\n", []string{"1: the policy has no callers", `1: profile "acme" is never used`}},
		{"empty callers", "callers: []\n", []string{"1: callers must be a list of at least one rule"}},
		{"callers is a mapping", "callers: {a: b}\n", []string{"1: callers must be a list"}},
		{"a rule is text", "callers: [a]\n", []string{"1: rule 1 must be a mapping"}},
		{"too many rules", "callers: [" + strings.Repeat("a,", 5001) + "]\n", []string{"1: callers has 5001 rules: 5000 is the most"}},

		{"unknown key in a rule", with("{dns_san: a.internal, allow: [CreateToken], profile: acme, cn: x}"), []string{`3: unknown key "cn" in rule 1`}},
		{"no selector", with("{allow: [CreateToken], profile: acme}"), []string{"3: rule 1 must have exactly one of"}},
		{"two selectors", with("{dns_san: a.internal, atlas_jwt: true, allow: [CreateToken], profile: acme}"), []string{"3: rule 1 must have exactly one of"}},
		{"no allow", with("{dns_san: a.internal, profile: acme}"), []string{"3: rule 1 has no allow"}},
		{"empty allow", with("{dns_san: a.internal, allow: [], profile: acme}"), []string{"3: allow in rule 1 must be a list of at least one"}},
		{"allow is text", with("{dns_san: a.internal, allow: CreateToken, profile: acme}"), []string{"3: allow in rule 1 must be a list"}},
		{"unknown method", with("{dns_san: a.internal, allow: [createToken], profile: acme}"), []string{`3: unknown method "createToken" in rule 1: there are CreateToken, DeleteToken`}},
		{"star for a method", with(`{dns_san: a.internal, allow: ["*"], profile: acme}`), []string{`3: unknown method "*"`}},
		{"method twice", with("{dns_san: a.internal, allow: [CreateToken, CreateToken], profile: acme}"), []string{"3: method CreateToken is twice in rule 1"}},
		{"no profile", with("{dns_san: a.internal, allow: [CreateToken]}"), []string{"3: rule 1 has no profile"}},
		{"profile is a number", with("{dns_san: a.internal, allow: [CreateToken], profile: 1}"), []string{"3: profile in rule 1 must be text"}},
		{"profile is null", with("{dns_san: a.internal, allow: [CreateToken], profile: }"), []string{"3: profile in rule 1 must be text"}},
		{"profile not defined", with("{dns_san: a.internal, allow: [CreateToken], profile: b}"), []string{`3: profile "b" in rule 1 is not defined`}},

		{"profile never used", profile("acme: {userauthtoken_file: /a}\n  b: {userauthtoken_file: /b}"), []string{`5: profile "b" is never used`}},
		{"profile twice", profile("acme: {userauthtoken_file: /a}\n  acme: {userauthtoken_file: /b}"), []string{`5: "acme" is twice in profiles`}},
		{"no profiles under it", "profiles: {}\ncallers:\n- {atlas_jwt: true, allow: [CreateToken], profile: passthrough}\n", []string{"1: profiles is empty"}},
		{"reserved name", profile("acme: {userauthtoken_file: /a}\n  passthrough: {userauthtoken_file: /b}"), []string{`5: profile "passthrough": the name is reserved`, `5: profile "passthrough" is never used`}},
		{"name in capitals", profile("acme: {userauthtoken_file: /a}\n  B: {userauthtoken_file: /b}"), []string{`5: profile "B": a name must have`, `5: profile "B" is never used`}},
		{"secret in place of the path", profile("acme: {userauthtoken_file: hunter2}"), []string{`4: userauthtoken_file in profile "acme" must be an absolute path`}},
		{"secret in the file", profile("acme: {userauthtoken: hunter2}"), []string{`4: unknown key "userauthtoken" in profile "acme"`, `4: profile "acme" has no userauthtoken_file`}},
		{"secret in place of the profile", profile("acme: hunter2"), []string{`4: profile "acme" must be a mapping`}},
		{"path with ..", profile("acme: {userauthtoken_file: /run/../a}"), []string{"4: userauthtoken_file in profile"}},
		{"no path", profile("acme: {userauthtoken_file: }"), []string{"4: userauthtoken_file in profile"}},

		{"SPIFFE ID is a URL", spiffe("https://prod.internal/a"), []string{"3: spiffe_id \"https://prod.internal/a\" in rule 1: not a SPIFFE ID"}},
		{"SPIFFE ID in capitals", spiffe("spiffe://PROD/a"), []string{"3: spiffe_id"}},
		{"SPIFFE ID without a path", spiffe("spiffe://prod.internal"), []string{"3: spiffe_id"}},
		{"SPIFFE ID with an empty segment", spiffe("spiffe://prod.internal/a//b"), []string{"3: spiffe_id"}},
		{"SPIFFE ID with dots", spiffe("spiffe://prod.internal/a/../b"), []string{"3: spiffe_id"}},
		{"star alone", spiffe("*"), []string{"3: spiffe_id"}},
		{"star for a trust domain", spiffe("spiffe://*/ns/a"), []string{"3: spiffe_id \"spiffe://*/ns/a\" in rule 1: the trust domain must not have a *"}},
		{"star in a trust domain", spiffe("spiffe://prod.*/ns/a"), []string{"the trust domain must not have a *"}},
		{"star runs out of the trust domain", spiffe("spiffe://prod*"), []string{"the trust domain must not have a *"}},
		{"everybody in a trust domain", spiffe("spiffe://prod.internal/*"), []string{"everybody in the trust domain"}},
		{"everybody three deep", spiffe("spiffe://prod.internal/*/*/*"), []string{"everybody in the trust domain"}},
		{"two stars", spiffe("spiffe://prod.internal/ns/**"), []string{"** is not supported"}},

		{"DNS star", dns("*"), []string{"3: dns_san \"*\" in rule 1: a * needs a domain"}},
		{"DNS star in a top-level domain", dns("*.internal"), []string{"everybody in a top-level domain"}},
		{"DNS star inside", dns("a.*.internal"), []string{"only the leftmost label"}},
		{"DNS star without a domain", dns("web-*"), []string{"a * needs a domain"}},
		{"DNS two stars", dns("**.a.internal"), []string{"** is not supported"}},
		{"DNS with a space", dns("a b.internal"), []string{"not a DNS name"}},
		{"DNS with a dot at the end", dns("a.internal."), []string{"not a DNS name"}},
		{"DNS is an address", dns("10.0.0.1"), []string{"an IP address"}},
		{"DNS is a URL", dns("https://a.internal"), []string{"not a DNS name"}},
		{"DNS label with a hyphen first", dns("-a.internal"), []string{"not a DNS name"}},
		{"DNS too long", dns(strings.Repeat("a.", 127) + "internal"), []string{"1 to 253"}},

		{"issuer without TLS", oidc("http://i.internal", "tokend", "a"), []string{"3: oidc in rule 1 \"http://i.internal\": the issuer must be an https URL"}},
		{"issuer is a name", oidc("i.internal", "tokend", "a"), []string{"must be an https URL"}},
		{"issuer without a host", oidc("https:///a", "tokend", "a"), []string{"the issuer has no host"}},
		{"issuer with a password", oidc("https://a:b@i.internal", "tokend", "a"), []string{"a user or password"}},
		{"issuer with a query", oidc("https://i.internal?a", "tokend", "a"), []string{"a query or fragment"}},
		{"issuer with a fragment", oidc("https://i.internal#a", "tokend", "a"), []string{"a query or fragment"}},
		{"issuer with a star", oidc("https://i.internal/*", "tokend", "a"), []string{"the issuer must not have a *"}},
		{"issuer is no URL", oidc("https://i.internal:x", "tokend", "a"), []string{"the issuer is not a URL"}},
		{"empty issuer", oidc("", "tokend", "a"), []string{"3: issuer in oidc in rule 1 is empty"}},
		{"empty audience", oidc("https://i.internal", "", "a"), []string{"3: audience in oidc in rule 1 is empty"}},
		{"audience is a star", oidc("https://i.internal", "*", "a"), []string{"the audience must not have a *"}},
		{"empty subject", subject(""), []string{"3: subject in oidc in rule 1 is empty"}},
		{"subject is a star", subject("*"), []string{"everybody that the issuer knows"}},
		{"subject is stars", subject("*:*/*"), []string{"everybody that the issuer knows"}},
		{"subject is two stars", subject("a**"), []string{"** is not supported"}},
		{"subject with a line feed", subject("a\nb"), []string{"must be printable ASCII"}},
		{"nothing in oidc", with("{oidc: {}, allow: [CreateToken], profile: acme}"), []string{"3: oidc in rule 1 has no issuer", "3: oidc in rule 1 has no audience", "3: oidc in rule 1 has no subject"}},
		{"oidc is text", with("{oidc: a, allow: [CreateToken], profile: acme}"), []string{"3: oidc in rule 1 must be a mapping"}},
		{"unknown key in oidc", with("{oidc: {issuer: https://i.internal, audience: a, subject: b, group: c}, allow: [CreateToken], profile: acme}"), []string{`3: unknown key "group" in oidc in rule 1`}},
		{"oidc with passthrough", with("{oidc: {issuer: https://i.internal, audience: a, subject: b}, allow: [CreateToken], profile: passthrough}"), []string{"3: rule 1: a caller with an OIDC token"}},
		{"two audiences of one issuer", with(
			"{oidc: {issuer: https://i.internal, audience: a, subject: b}, allow: [CreateToken], profile: acme}",
			"{oidc: {issuer: https://i.internal, audience: b, subject: c}, allow: [CreateToken], profile: acme}",
		), []string{"4: oidc in rule 2: the issuer has another audience in line 3"}},

		{"atlas_jwt with a profile", with("{atlas_jwt: true, allow: [CreateToken], profile: acme}"), []string{"3: rule 1: anybody can write down an Atlas JWT"}},
		{"atlas_jwt is false", with("{atlas_jwt: false, allow: [CreateToken], profile: passthrough}"), []string{"3: atlas_jwt in rule 1 can only be true"}},
		{"atlas_jwt is text", with(`{atlas_jwt: "true", allow: [CreateToken], profile: passthrough}`), []string{"3: atlas_jwt in rule 1 can only be true"}},

		{"the same rule twice", with(
			"{dns_san: a.internal, allow: [CreateToken], profile: acme}",
			"{dns_san: A.internal, allow: [DeleteToken], profile: acme}",
		), []string{`4: the rule for "dns_san a.internal" can never decide: the one in line 3 matches first`}},
		{"atlas_jwt twice", with(
			"{atlas_jwt: true, allow: [CreateToken], profile: passthrough}",
			"{atlas_jwt: true, allow: [DeleteToken], profile: passthrough}",
		), []string{"4: the rule for \"atlas_jwt\" can never decide"}},
		{"behind a glob", with(
			"{spiffe_id: \"spiffe://p/ns/*/sa/w*\", allow: [CreateToken], profile: acme}",
			"{spiffe_id: \"spiffe://p/ns/a/sa/web\", allow: [DeleteToken], profile: acme}",
			"{spiffe_id: \"spiffe://p/ns/a*/sa/we*\", allow: [DeleteToken], profile: acme}",
		), []string{"4: the rule for", "5: the rule for"}},
		{"OIDC behind a glob", with(
			"{oidc: {issuer: https://i.internal, audience: a, subject: ci-*}, allow: [CreateToken], profile: acme}",
			"{oidc: {issuer: https://i.internal, audience: a, subject: ci-1}, allow: [CreateToken], profile: acme}",
		), []string{"4: the rule for \"oidc https://i.internal#ci-1\" can never decide: the one in line 3 matches first"}},
		{"all at once", `
profiles:
  acme: {userauthtoken_file: acme}
callers:
  - {spiffe_id: "spiffe://*/a", allow: [], profile: nope}
  - {dns_san: "*", allow: [Fly], profile: passthrough}
`, []string{"3: userauthtoken_file", `3: profile "acme" is never used`, "5: allow", `5: profile "nope"`, "5: spiffe_id", "6: unknown method", "6: dns_san"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := auth.ParsePolicy("policy.yaml", []byte(tc.policy))
			if err == nil || p != nil {
				t.Fatalf("accepted:\n%s", tc.policy)
			}
			got := strings.Split(err.Error(), "\n")
			if len(got) != len(tc.want) {
				t.Fatalf("%d mistakes, want %d:\n%v", len(got), len(tc.want), err)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("no %q in:\n%v", want, err)
				}
			}
			var mistake *auth.Mistake
			if !errors.As(err, &mistake) || mistake.File != "policy.yaml" || mistake.Line < 1 {
				t.Errorf("no file and line: %+v", mistake)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("a secret is quoted: %v", err)
			}
		})
	}
}

// TestReachable: what only looks as if it were shadowed is accepted.
func TestReachable(t *testing.T) {
	mustPolicy(t, `
profiles: {acme: {userauthtoken_file: /a}}
callers:
  - {spiffe_id: "spiffe://p/ns/a/sa/web", allow: [CreateToken], profile: acme}
  - {spiffe_id: "spiffe://q/ns/*/sa/*", allow: [CreateToken], profile: acme}
  - {spiffe_id: "spiffe://p/ns/*/sa/w*", allow: [CreateToken], profile: acme}
  - {spiffe_id: "spiffe://p/ns/*/sa/*b", allow: [CreateToken], profile: acme}
  - {spiffe_id: "spiffe://p/ns/*/sa/web/x", allow: [CreateToken], profile: acme}
  - {dns_san: "*.a.internal", allow: [CreateToken], profile: acme}
  - {dns_san: "b.c.a.internal", allow: [CreateToken], profile: acme}
  - {oidc: {issuer: "https://i.internal", audience: a, subject: "ci-*"}, allow: [CreateToken], profile: acme}
  - {oidc: {issuer: "https://i.internal", audience: a, subject: "ci-a/b"}, allow: [CreateToken], profile: acme}
  - {oidc: {issuer: "https://j.internal", audience: b, subject: "ci-1"}, allow: [CreateToken], profile: acme}
`)
}

func TestManyMistakes(t *testing.T) {
	_, err := auth.ParsePolicy("policy.yaml", []byte("callers: ["+strings.Repeat("a,", 500)+"]"))
	if err == nil || strings.Count(err.Error(), "\n") != 100 || !strings.HasSuffix(err.Error(), "policy.yaml: and 400 mistakes more") {
		t.Errorf("got %v", err)
	}
}

// TestPolicyFromFile: what ParsePolicy says points into the file.
func TestPolicyFromFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(file, []byte("callers:\n  - nobody\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = auth.ParsePolicy(file, data); err == nil || err.Error() != file+":2: rule 1 must be a mapping" {
		t.Errorf("got %v", err)
	}
}

// FuzzParsePolicy: whatever the file says, it is a policy or a list of mistakes with their lines. A policy never lets a
// caller that nothing is known of use an identity of the service, lists itself, and explains each caller.
func FuzzParsePolicy(f *testing.F) {
	f.Add([]byte(goodPolicy))
	f.Add([]byte("callers:\n- {dns_san: a.internal, allow: [CreateToken], profile: passthrough}\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("? {a: b}\n: c\n"))
	f.Add([]byte("callers: [[[[[["))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := auth.ParsePolicy("p", data)
		if err != nil {
			var mistake *auth.Mistake
			if p != nil || !errors.As(err, &mistake) || mistake.Line < 1 {
				t.Errorf("got %v, %v", p, err)
			}
			return
		}
		for _, caller := range [][]auth.Caller{nil, {{}}, {{Kind: auth.KindAtlas}}} {
			if d, _ := p.Decide(caller, "CreateToken"); d.Profile != "" && d.Profile != auth.Passthrough {
				t.Errorf("%v may use profile %q", caller, d.Profile)
			}
		}
		for _, nobody := range []auth.Caller{
			{Kind: auth.KindSPIFFE, Name: "spiffe://\x7f/\x7f"}, {Kind: auth.KindDNS, Name: "\x7f"}, {Kind: auth.KindOIDC, Name: "https://\x7f#\x7f"},
		} {
			if d, err := p.Decide([]auth.Caller{nobody}, "CreateToken"); err == nil {
				t.Errorf("%v may %+v", nobody, d)
			}
		}
		if said, err := p.Explain("atlas_jwt"); p.String() == "" || said == "" || err != nil {
			t.Error("the policy does not list itself")
		}
	})
}
