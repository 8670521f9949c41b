package auth_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
)

// TestPolicyValidationErrors checks the text of each error.
func TestPolicyValidationErrors(t *testing.T) {
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
		want         []string // one for each error: line: part of the text
	}{
		{"empty", "", []string{"1: yaml: no documents"}},
		{"comment only", "# nothing\n", []string{"1: yaml: no documents"}},
		{"null", "~\n", []string{"1: the policy has no callers"}},
		{"text", "hello\n", []string{"1: cannot construct !!str into auth.policyFile"}},
		{"a list", "- a\n", []string{"1: cannot construct !!seq into auth.policyFile"}},
		{"not YAML", "callers: [\n", []string{"2: not YAML"}},
		{"not YAML after it", goodPolicy + "---\n[", []string{"18: not YAML"}},
		{"not UTF-8", "callers: \xff", []string{"1: not YAML"}},
		{"two documents", goodPolicy + "---\n" + goodPolicy, []string{"1: yaml: expected single document"}},
		{"an anchor", "callers: &x []\nprofiles: *x\n", []string{"1: YAML's anchors", "2: YAML's anchors"}},
		{"an alias", "profiles: {}\ncallers: *x\n", []string{"2: not YAML"}},
		{"a bomb", "a: &a [x,x]\nb: [*a,*a]\n", []string{"1: YAML's anchors", "2: YAML's anchors", "2: YAML's anchors"}},
		{"a tag", "callers: !!seq []\n", []string{"1: YAML's anchors, aliases, tags"}},
		{"a merge", with("{<<: {allow: [CreateToken]}, dns_san: a.internal, profile: acme}"), []string{"3: YAML's anchors, aliases, tags and merge keys"}},
		{"unknown key", goodPolicy + "defaults: x\n", []string{"16: field defaults not found"}},
		{"key twice", "callers: [{dns_san: a.b, dns_san: c.d}]\ncallers: []\n", []string{`2: mapping key "callers" already defined at line 1`}},
		{"key twice in a rule", with("{dns_san: a.internal, allow: [CreateToken],\n  allow: [DeleteToken], profile: acme}", "{dns_san: b.internal, x: 1}"), []string{`4: mapping key "allow" already defined`, "5: field x not found"}},
		{"a list for a key", "? [a]\n: b\n", []string{"1: cannot construct !!seq into string"}},
		{"no callers", "profiles: {acme: {userauthtoken_file: /a}}\n", []string{"1: the policy has no callers", `1: profile "acme" is never used`}},
		{"empty callers", "callers: []\n", []string{"1: the policy has no callers"}},
		{"callers is a mapping", "callers: {a: b}\n", []string{"1: cannot construct !!map into auth.callerList"}},
		{"a rule is text", "callers: [a]\n", []string{"1: cannot construct !!str into auth.callerEntry"}},
		{"too many rules", "callers: [" + strings.Repeat("{},", 5001) + "]\n", []string{"1: the policy has 5001 callers: 5000 is the most"}},

		{"unknown key in a rule", with("{dns_san: a.internal, allow: [CreateToken], profile: acme, cn: x}"), []string{"3: field cn not found"}},
		{"no selector", with("{allow: [CreateToken], profile: acme}"), []string{"3: rule 1: it must have exactly one of spiffe_id, oidc, dns_san, atlas_jwt: true; it has 0"}},
		{"two selectors", with("{dns_san: a.internal, atlas_jwt: true, allow: [CreateToken], profile: acme}"), []string{"3: rule 1: it must have exactly one of spiffe_id, oidc, dns_san, atlas_jwt: true; it has 2"}},
		{"no allow", with("{dns_san: a.internal, profile: acme}"), []string{"3: rule 1 must allow at least one method"}},
		{"empty allow", with("{dns_san: a.internal, allow: [], profile: acme}"), []string{"3: rule 1 must allow at least one method"}},
		{"allow is text", with("{dns_san: a.internal, allow: CreateToken, profile: acme}"), []string{"3: cannot construct !!str into []string"}},
		{"unknown method", with("{dns_san: a.internal, allow: [createToken], profile: acme}"), []string{`3: unknown method "createToken" in rule 1: there are CreateToken, DeleteToken`}},
		{"star for a method", with(`{dns_san: a.internal, allow: ["*"], profile: acme}`), []string{`3: unknown method "*"`}},
		{"method twice", with("{dns_san: a.internal, allow: [CreateToken, CreateToken], profile: acme}"), []string{"3: method CreateToken is twice in rule 1"}},
		{"no profile", with("{dns_san: a.internal, allow: [CreateToken]}"), []string{"3: rule 1 has no profile"}},
		{"profile is a number", with("{dns_san: a.internal, allow: [CreateToken], profile: 1}"), []string{`3: profile "1" in rule 1 is not defined`}},
		{"profile is a list", with("{dns_san: a.internal, allow: [CreateToken], profile: [hunter2]}"), []string{"3: cannot construct !!seq into string"}},
		{"profile is null", with("{dns_san: a.internal, allow: [CreateToken], profile: }"), []string{"3: rule 1 has no profile"}},
		{"profile not defined", with("{dns_san: a.internal, allow: [CreateToken], profile: b}"), []string{`3: profile "b" in rule 1 is not defined`}},

		{"profile never used", profile("acme: {userauthtoken_file: /a}\n  b: {userauthtoken_file: /b}"), []string{`5: profile "b" is never used`}},
		{"profile twice", profile("acme: {userauthtoken_file: /a}\n  acme: {userauthtoken_file: /b}"), []string{`5: mapping key "acme" already defined`}},
		{"reserved name", profile("acme: {userauthtoken_file: /a}\n  passthrough: {userauthtoken_file: /b}"), []string{`5: profile "passthrough": the name is reserved`, `5: profile "passthrough" is never used`}},
		{"empty name", profile("acme: {userauthtoken_file: /a}\n  '': {userauthtoken_file: /b}"), []string{`5: profile "": a name must have`, `5: profile "" is never used`}},
		{"name with a hyphen first", profile("acme: {userauthtoken_file: /a}\n  -b: {userauthtoken_file: /b}"), []string{`5: profile "-b": a name must have`, `5: profile "-b" is never used`}},
		{"name in capitals", profile("acme: {userauthtoken_file: /a}\n  B: {userauthtoken_file: /b}"), []string{`5: profile "B": a name must have`, `5: profile "B" is never used`}},
		{"secret in place of the path", profile("acme: {userauthtoken_file: hunter2}"), []string{`4: userauthtoken_file in profile "acme" must be an absolute path`}},
		{"secret in the file", profile("acme: {userauthtoken: hunter2}"), []string{"4: field userauthtoken not found"}},
		{"secret in place of the profile", profile("acme: hunter2"), []string{"4: cannot construct !!str into auth.profileEntry"}},
		{"path with ..", profile("acme: {userauthtoken_file: /run/../a}"), []string{"4: userauthtoken_file in profile"}},
		{"no path", profile("acme: {userauthtoken_file: }"), []string{`4: profile "acme" has no userauthtoken_file`}},
		{"empty path", profile("acme: {userauthtoken_file: ''}"), []string{`4: profile "acme" has no userauthtoken_file`}},

		{"SPIFFE ID is a URL", spiffe("https://prod.internal/a"), []string{"3: rule 1: spiffe_id \"https://prod.internal/a\": not a SPIFFE ID"}},
		{"SPIFFE ID in capitals", spiffe("spiffe://PROD/a"), []string{"3: rule 1: spiffe_id"}},
		{"SPIFFE ID without a path", spiffe("spiffe://prod.internal"), []string{"3: rule 1: spiffe_id"}},
		{"SPIFFE ID with an empty segment", spiffe("spiffe://prod.internal/a//b"), []string{"3: rule 1: spiffe_id"}},
		{"SPIFFE ID with dots", spiffe("spiffe://prod.internal/a/../b"), []string{"3: rule 1: spiffe_id"}},
		{"star alone", spiffe("*"), []string{"3: rule 1: spiffe_id"}},
		{"star for a trust domain", spiffe("spiffe://*/ns/a"), []string{"3: rule 1: spiffe_id \"spiffe://*/ns/a\": the trust domain must not have a *"}},
		{"star in a trust domain", spiffe("spiffe://prod.*/ns/a"), []string{"the trust domain must not have a *"}},
		{"star runs out of the trust domain", spiffe("spiffe://prod*"), []string{"the trust domain must not have a *"}},
		{"whole trust domain", spiffe("spiffe://prod.internal/*"), []string{"every caller in the trust domain"}},
		{"whole trust domain, three segments", spiffe("spiffe://prod.internal/*/*/*"), []string{"every caller in the trust domain"}},
		{"two stars", spiffe("spiffe://prod.internal/ns/**"), []string{"** is not supported"}},

		{"DNS star", dns("*"), []string{"3: rule 1: dns_san \"*\": a * needs a domain"}},
		{"DNS star in a top-level domain", dns("*.internal"), []string{"every name in a top-level domain"}},
		{"DNS star inside", dns("a.*.internal"), []string{"only the leftmost label"}},
		{"DNS star without a domain", dns("web-*"), []string{"a * needs a domain"}},
		{"DNS two stars", dns("**.a.internal"), []string{"** is not supported"}},
		{"DNS with a space", dns("a b.internal"), []string{"not a DNS name"}},
		{"DNS with a dot at the end", dns("a.internal."), []string{"not a DNS name"}},
		{"DNS is an address", dns("10.0.0.1"), []string{"an IP address"}},
		{"DNS is a URL", dns("https://a.internal"), []string{"not a DNS name"}},
		{"DNS label with a hyphen first", dns("-a.internal"), []string{"not a DNS name"}},
		{"DNS too long", dns(strings.Repeat("a.", 127) + "internal"), []string{"1 to 253"}},

		{"issuer without TLS", oidc("http://i.internal", "tokend", "a"), []string{"3: rule 1: the issuer must be an https URL"}},
		{"issuer is a name", oidc("i.internal", "tokend", "a"), []string{"must be an https URL"}},
		{"issuer without a host", oidc("https:///a", "tokend", "a"), []string{"the issuer has no host"}},
		{"issuer with a password", oidc("https://a:b@i.internal", "tokend", "a"), []string{"a user or password"}},
		{"issuer with a query", oidc("https://i.internal?a", "tokend", "a"), []string{"a query or fragment"}},
		{"issuer with a fragment", oidc("https://i.internal#a", "tokend", "a"), []string{"a query or fragment"}},
		{"issuer with a star", oidc("https://i.internal/*", "tokend", "a"), []string{"the issuer must not have a *"}},
		{"issuer is no URL", oidc("https://i.internal:x", "tokend", "a"), []string{"the issuer is not a URL"}},
		{"empty issuer", oidc("", "tokend", "a"), []string{"3: rule 1: the issuer is missing"}},
		{"empty audience", oidc("https://i.internal", "", "a"), []string{"3: rule 1: the audience is missing"}},
		{"audience is a star", oidc("https://i.internal", "*", "a"), []string{"the audience must not have a *"}},
		{"empty subject", subject(""), []string{"3: rule 1: the subject is missing"}},
		{"subject is a star", subject("*"), []string{"every caller of the issuer"}},
		{"subject is stars", subject("*:*/*"), []string{"every caller of the issuer"}},
		{"subject is two stars", subject("a**"), []string{"** is not supported"}},
		{"subject with a line feed", subject("a\nb"), []string{"must be printable ASCII"}},
		{"subject with a space before it", subject(" a"), []string{"3: rule 1: the subject must not begin or end with a space"}},
		{"subject with a space after it", subject("a "), []string{"3: rule 1: the subject must not begin or end with a space"}},
		{"audience with a space after it", oidc("https://i.internal", "tokend ", "a"), []string{"3: rule 1: the audience must not begin or end with a space"}},
		{"subject with a ? and a star", subject("ci-?-*"), []string{"?, [ and \\ cannot be combined with a *"}},
		{"subject with a [ and a star", subject("ci-[a-z]*"), []string{"?, [ and \\ cannot be combined with a *"}},
		{"subject with a \\ and a star", subject(`DOMAIN\ci-*`), []string{"?, [ and \\ cannot be combined with a *"}},
		{"nothing in oidc", with("{oidc: {}, allow: [CreateToken], profile: acme}"), []string{"3: rule 1: the issuer is missing"}},
		{"oidc is text", with("{oidc: a, allow: [CreateToken], profile: acme}"), []string{"3: cannot construct !!str into auth.oidcEntry"}},
		{"unknown key in oidc", with("{oidc: {issuer: https://i.internal, audience: a, subject: b, group: c}, allow: [CreateToken], profile: acme}"), []string{"3: field group not found"}},
		{"oidc with passthrough", with("{oidc: {issuer: https://i.internal, audience: a, subject: b}, allow: [CreateToken], profile: passthrough}"), []string{"3: rule 1: a caller with an OIDC token"}},
		{"two audiences of one issuer", with(
			"{oidc: {issuer: https://i.internal, audience: a, subject: b}, allow: [CreateToken], profile: acme}",
			"{oidc: {issuer: https://i.internal, audience: b, subject: c}, allow: [CreateToken], profile: acme}",
		), []string{"4: rule 2: the issuer has another audience in line 3"}},

		{"atlas_jwt with a profile", with("{atlas_jwt: true, allow: [CreateToken], profile: acme}"), []string{"3: rule 1: only Atlas can verify an Atlas JWT"}},
		{"atlas_jwt is false", with("{atlas_jwt: false, allow: [CreateToken], profile: passthrough}"), []string{"3: rule 1: it must have exactly one of spiffe_id, oidc, dns_san, atlas_jwt: true; it has 0"}},
		{"atlas_jwt is text", with(`{atlas_jwt: "true", allow: [CreateToken], profile: passthrough}`), []string{"3: cannot construct !!str into bool"}},

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
`, []string{"3: userauthtoken_file", `3: profile "acme" is never used`, "5: rule 1 must allow", `5: profile "nope"`, "5: rule 1: spiffe_id", "6: unknown method", "6: rule 2: dns_san"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := auth.ParsePolicy("policy.yaml", []byte(tc.policy))
			if err == nil || p != nil {
				t.Fatalf("accepted:\n%s", tc.policy)
			}
			got := strings.Split(err.Error(), "\n")
			if len(got) != len(tc.want) {
				t.Fatalf("%d errors, want %d:\n%v", len(got), len(tc.want), err)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("no %q in:\n%v", want, err)
				}
			}
			for _, line := range got {
				if !regexp.MustCompile(`^policy\.yaml:[1-9][0-9]*: `).MatchString(line) {
					t.Errorf("no file and line: %s", line)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("a secret is quoted: %v", err)
			}
		})
	}
}

// TestReachable checks that rules that only look unreachable are accepted.
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
  - {oidc: {issuer: "https://i.internal", audience: a, subject: 'DOMAIN\ops'}, allow: [CreateToken], profile: acme}
  - {oidc: {issuer: "https://i.internal", audience: a, subject: 12345}, allow: [CreateToken], profile: acme}
`)
}

// TestLongest checks each limit of a policy.
func TestLongest(t *testing.T) {
	x := func(n int) string { return strings.Repeat("x", n) }
	for name, tc := range map[string]struct {
		policy func(n int) string
		most   int
	}{
		"subject": {func(n int) string {
			return fmt.Sprintf("profiles: {a: {userauthtoken_file: /a}}\ncallers: [{oidc: {issuer: https://i.internal, audience: a, subject: %s}, allow: [CreateToken], profile: a}]", x(n))
		}, 255},
		"audience": {func(n int) string {
			return fmt.Sprintf("profiles: {a: {userauthtoken_file: /a}}\ncallers: [{oidc: {issuer: https://i.internal, audience: %s, subject: a}, allow: [CreateToken], profile: a}]", x(n))
		}, 2048},
		"DNS label": {func(n int) string {
			return fmt.Sprintf("callers: [{dns_san: %s.internal, allow: [CreateToken], profile: passthrough}]", x(n))
		}, 63},
		"DNS name": {func(n int) string {
			return fmt.Sprintf("callers: [{dns_san: %s%s, allow: [CreateToken], profile: passthrough}]", strings.Repeat("x.", 120), x(n-240))
		}, 253},
		"profile": {func(n int) string {
			return fmt.Sprintf("profiles: {%s: {userauthtoken_file: /a}}\ncallers: [{dns_san: a.internal, allow: [CreateToken], profile: %s}]", x(n), x(n))
		}, 63},
	} {
		if _, err := auth.ParsePolicy("p", []byte(tc.policy(tc.most))); err != nil {
			t.Errorf("%s of %d: %v", name, tc.most, err)
		}
		if _, err := auth.ParsePolicy("p", []byte(tc.policy(tc.most+1))); err == nil {
			t.Errorf("%s of %d is accepted", name, tc.most+1)
		}
	}
}

func TestManyValidationErrors(t *testing.T) {
	_, err := auth.ParsePolicy("policy.yaml", []byte("callers: ["+strings.Repeat("a,", 500)+"]"))
	if err == nil || strings.Count(err.Error(), "\n") != 100 || !strings.HasSuffix(err.Error(), "policy.yaml: and 400 more errors") {
		t.Errorf("got %v", err)
	}
}

// FuzzParsePolicy checks that a file is a policy or an error, and that no policy lets an unknown
// caller use an identity of the service.
func FuzzParsePolicy(f *testing.F) {
	f.Add([]byte(goodPolicy))
	f.Add([]byte("callers:\n- {dns_san: a.internal, allow: [CreateToken], profile: passthrough}\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("? {a: b}\n: c\n"))
	f.Add([]byte("callers: [[[[[["))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := auth.ParsePolicy("p", data)
		if err != nil {
			if p != nil {
				t.Errorf("got %v, %v", p, err)
			}
			return
		}
		for _, caller := range [][]auth.Caller{nil, {{}}, {{Kind: auth.KindAtlas}}} {
			if d, _ := p.Decide(caller, "CreateToken"); d.Profile != "" && d.Profile != auth.Passthrough {
				t.Errorf("%v may use profile %q", caller, d.Profile)
			}
		}
		for _, stranger := range []auth.Caller{
			{Kind: auth.KindSPIFFE, Name: "spiffe://\x7f/\x7f"}, {Kind: auth.KindDNS, Name: "\x7f"}, {Kind: auth.KindOIDC, Name: "https://\x7f#\x7f"},
		} {
			if d, err := p.Decide([]auth.Caller{stranger}, "CreateToken"); err == nil {
				t.Errorf("%v may %+v", stranger, d)
			}
		}
		if said, _, err := p.Explain("atlas_jwt"); p.String() == "" || said == "" || err != nil {
			t.Error("the policy does not list itself")
		}
	})
}
