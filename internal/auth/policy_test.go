package auth_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
)

const goodPolicy = `# who may do what
profiles:
  acme: {userauthtoken_file: /run/secrets/acme}
  other:
    userauthtoken_file: /run/secrets/other
callers:
  - {spiffe_id: "spiffe://prod.internal/ns/chat/sa/web", allow: [CreateToken], profile: acme}
  - {oidc: {issuer: "https://issuer.internal", audience: tokend, subject: "ci-*"}, allow: [CreateToken, DeleteToken], profile: acme}
  - {dns_san: "billing.internal", allow: [CreateToken], profile: passthrough}
  - spiffe_id: "spiffe://prod.internal/ns/*/sa/job-*"
    allow: [DeleteToken]
    profile: other
  - {dns_san: "web-*.prod.internal", allow: [CreateToken], profile: other}
  - {oidc: {issuer: "https://issuer.internal", audience: tokend, subject: "ops"}, allow: [DeleteToken], profile: other}
  - {atlas_jwt: true, allow: [CreateToken, DeleteToken], profile: passthrough}
`

func TestParsePolicy(t *testing.T) {
	p := mustPolicy(t, goodPolicy)
	if diff := cmp.Diff([]auth.Profile{{Name: "acme", UserauthtokenFile: "/run/secrets/acme", Line: 3}, {Name: "other", UserauthtokenFile: "/run/secrets/other", Line: 5}}, p.Profiles()); diff != "" {
		t.Errorf("profiles (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]auth.Issuer{{URL: "https://issuer.internal", Audience: "tokend"}}, p.IssuerConfigs()); diff != "" {
		t.Errorf("issuers (-want +got):\n%s", diff)
	}
	want := `policy policy.yaml: the first rule whose selector matches decides; a caller that matches none is denied
rule 1  line 7   spiffe_id spiffe://prod.internal/ns/chat/sa/web  may call CreateToken               as profile acme
rule 2  line 8   oidc https://issuer.internal#ci-*                may call CreateToken, DeleteToken  as profile acme
rule 3  line 9   dns_san billing.internal                         may call CreateToken               with the caller's own Atlas JWT
rule 4  line 10  spiffe_id spiffe://prod.internal/ns/*/sa/job-*   may call DeleteToken               as profile other
rule 5  line 13  dns_san web-*.prod.internal                      may call CreateToken               as profile other
rule 6  line 14  oidc https://issuer.internal#ops                 may call DeleteToken               as profile other
rule 7  line 15  atlas_jwt                                        may call CreateToken, DeleteToken  with the caller's own Atlas JWT
profile acme   line 3  userauthtoken_file /run/secrets/acme
profile other  line 5  userauthtoken_file /run/secrets/other
issuer https://issuer.internal  audience tokend
`
	if diff := cmp.Diff(want, p.String()); diff != "" {
		t.Errorf("listing (-want +got):\n%s", diff)
	}
}

// TestPolicyNeeds checks what a policy says it needs.
func TestPolicyNeeds(t *testing.T) {
	const own = "allow: [CreateToken], profile: passthrough}]"
	for _, tc := range []struct {
		policy                  string
		oidc, certificates, dns bool
	}{
		{oidcPolicy("https://issuer.internal"), true, false, false},
		{"callers: [{dns_san: a.internal, " + own, false, true, true},
		{"callers: [{spiffe_id: spiffe://a/b, " + own, false, true, false},
		{"callers: [{atlas_jwt: true, " + own, false, false, false},
	} {
		p := mustPolicy(t, tc.policy)
		if (len(p.Issuers()) == 1) != tc.oidc || p.NeedsCertificates() != tc.certificates || p.NeedsDNSNames() != tc.dns {
			t.Errorf("issuers %q, certificates %t, DNS names %t:\n%s", p.Issuers(), p.NeedsCertificates(), p.NeedsDNSNames(), tc.policy)
		}
	}
}

func TestDecide(t *testing.T) {
	spiffe := func(path string) auth.Caller {
		return auth.Caller{Kind: auth.KindSPIFFE, Name: "spiffe://prod.internal" + path}
	}
	dns := func(name string) auth.Caller { return auth.Caller{Kind: auth.KindDNS, Name: name} }
	oidc := func(subject string) auth.Caller {
		return auth.Caller{Kind: auth.KindOIDC, Name: "https://issuer.internal#" + subject}
	}
	atlas := auth.Caller{Kind: auth.KindAtlas}
	p := mustPolicy(t, goodPolicy)
	for _, tc := range []struct {
		name    string
		callers []auth.Caller
		method  string
		rule    int
		profile string
		err     error
	}{
		{"exact", []auth.Caller{spiffe("/ns/chat/sa/web")}, "CreateToken", 1, "acme", nil},
		{"full method", []auth.Caller{spiffe("/ns/chat/sa/web")}, "/forsta.ephemeraltoken.v1.EphemeralTokenService/CreateToken", 1, "acme", nil},
		{"not allowed", []auth.Caller{spiffe("/ns/chat/sa/web")}, "DeleteToken", 1, "", auth.ErrNotPermitted},
		{"another service's method", []auth.Caller{spiffe("/ns/chat/sa/web")}, "/x/CreateToken", 1, "", auth.ErrNotPermitted},
		{"unknown method", []auth.Caller{oidc("ci-1")}, "", 2, "", auth.ErrNotPermitted},
		{"glob", []auth.Caller{spiffe("/ns/a/sa/job-1")}, "DeleteToken", 4, "other", nil},
		{"glob, empty", []auth.Caller{spiffe("/ns/a/sa/job-")}, "DeleteToken", 4, "other", nil},
		{"glob, a segment more", []auth.Caller{spiffe("/ns/a/b/sa/job-1")}, "DeleteToken", 0, "", auth.ErrNotPermitted},
		{"glob, a segment less", []auth.Caller{spiffe("/ns/sa/job-1")}, "DeleteToken", 0, "", auth.ErrNotPermitted},
		{"glob, not to the end", []auth.Caller{spiffe("/ns/a/sa/job-1/x")}, "DeleteToken", 0, "", auth.ErrNotPermitted},
		{"glob, another domain", []auth.Caller{{Kind: auth.KindSPIFFE, Name: "spiffe://prod.internal.evil/ns/a/sa/job-1"}}, "DeleteToken", 0, "", auth.ErrNotPermitted},
		{"glob, the domain within", []auth.Caller{{Kind: auth.KindSPIFFE, Name: "spiffe://evil/prod.internal/ns/a/sa/job-1"}}, "DeleteToken", 0, "", auth.ErrNotPermitted},
		{"a name of another kind", []auth.Caller{dns("spiffe://prod.internal/ns/chat/sa/web")}, "CreateToken", 0, "", auth.ErrNotPermitted},
		{"DNS", []auth.Caller{dns("billing.internal")}, "CreateToken", 3, "passthrough", nil},
		{"DNS glob", []auth.Caller{dns("web-1.prod.internal")}, "CreateToken", 5, "other", nil},
		{"DNS glob, two labels", []auth.Caller{dns("web-1.x.prod.internal")}, "CreateToken", 0, "", auth.ErrNotPermitted},
		{"DNS glob, more after", []auth.Caller{dns("web-1.prod.internal.evil.org")}, "CreateToken", 0, "", auth.ErrNotPermitted},
		{"second name", []auth.Caller{dns("x.internal"), dns("billing.internal")}, "CreateToken", 3, "passthrough", nil},
		{"OIDC", []auth.Caller{oidc("ops")}, "DeleteToken", 6, "other", nil},
		{"OIDC, another issuer", []auth.Caller{{Kind: auth.KindOIDC, Name: "https://issuer.internal.evil#ops"}}, "DeleteToken", 0, "", auth.ErrNotPermitted},
		{"OIDC, a subject with a #", []auth.Caller{oidc("x#ops")}, "DeleteToken", 0, "", auth.ErrNotPermitted},
		{"the first rule of two callers", []auth.Caller{oidc("ops"), spiffe("/ns/chat/sa/web")}, "CreateToken", 1, "acme", nil},
		{"in the other order", []auth.Caller{spiffe("/ns/chat/sa/web"), oidc("ops")}, "CreateToken", 1, "acme", nil},
		{"the first rule decides for both", []auth.Caller{spiffe("/ns/chat/sa/web"), oidc("ops")}, "DeleteToken", 1, "", auth.ErrNotPermitted},
		{"Atlas", []auth.Caller{atlas}, "CreateToken", 7, "passthrough", nil},
		{"Atlas beside a stranger", []auth.Caller{dns("x.internal"), atlas}, "CreateToken", 7, "passthrough", nil},
		{"no identity", nil, "CreateToken", 0, "", auth.ErrMissing},
		{"stranger", []auth.Caller{dns("x.internal")}, "CreateToken", 0, "", auth.ErrNotPermitted},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, err := p.Decide(tc.callers, tc.method)
			if !errors.Is(err, tc.err) || d.Rule != tc.rule || d.Profile != tc.profile {
				t.Errorf("got %+v, %v; want rule %d, profile %q, %v", d, err, tc.rule, tc.profile, tc.err)
			}
		})
	}
	noAtlas := mustPolicy(t, oidcPolicy("https://issuer.internal"))
	if _, err := noAtlas.Decide([]auth.Caller{atlas}, "CreateToken"); !errors.Is(err, auth.ErrUnknownCaller) {
		t.Errorf("an Atlas JWT without a rule: %v, want ErrUnknownCaller", err)
	}
}

func ExamplePolicy_Explain() {
	policy, err := auth.ParsePolicy("policy.yaml", []byte(goodPolicy))
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, caller := range []string{
		"spiffe://prod.internal/ns/chat/sa/web",
		"dns:Billing.internal",
		"oidc:https://issuer.internal#ci-42",
		"oidc:https://issuer.internal#dev",
		"atlas_jwt",
		"billing.internal",
	} {
		said, _, err := policy.Explain(caller)
		if err != nil {
			fmt.Println("error:", err)
			continue
		}
		fmt.Println(said)
	}
	// Output:
	// spiffe://prod.internal/ns/chat/sa/web matches rule 1 (policy.yaml:7), spiffe_id spiffe://prod.internal/ns/chat/sa/web: it may call CreateToken, as profile acme
	// dns:billing.internal matches rule 3 (policy.yaml:9), dns_san billing.internal: it may call CreateToken, with the caller's own Atlas JWT
	// oidc:https://issuer.internal#ci-42 matches rule 2 (policy.yaml:8), oidc https://issuer.internal#ci-*: it may call CreateToken, DeleteToken, as profile acme
	// oidc:https://issuer.internal#dev matches none of the 7 rules in policy.yaml: it may do nothing
	// atlas_jwt matches rule 7 (policy.yaml:15), atlas_jwt: it may call CreateToken, DeleteToken, with the caller's own Atlas JWT
	// error: "billing.internal" is not a caller: give spiffe://TRUST-DOMAIN/PATH, dns:NAME, oidc:ISSUER#SUBJECT or atlas_jwt
}
