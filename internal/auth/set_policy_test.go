package auth_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth/authtest"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/testcert"
)

// TestSetPolicy checks that issuers come and go with the policy, and that one that stays keeps its
// keys.
func TestSetPolicy(t *testing.T) {
	one, two := authtest.NewIssuer(t), authtest.NewIssuer(t)
	key := authtest.NewKey(t)
	pool := x509.NewCertPool()
	for _, i := range []*authtest.Issuer{one, two} {
		i.Publish(map[string]crypto.Signer{"k": key})
		pool.AddCert(i.Certificate())
	}
	roots := func() *x509.CertPool { return pool }
	a := newAuthenticator(t, auth.Config{Policy: mustPolicy(t, oidcPolicy(one.URL)), RootCAs: roots}.Impatient(time.Millisecond, 0))
	untilReady(t, a)
	tokenOne := authtest.Sign(t, jwt.SigningMethodES256, "k", key, one.Claims(nil))
	tokenTwo := authtest.Sign(t, jwt.SigningMethodES256, "k", key, two.Claims(nil))
	both := oidcPolicy(one.URL) + fmt.Sprintf("  - {oidc: {issuer: %q, audience: tokend, subject: ci-42}, allow: [CreateToken], profile: acme}\n", two.URL)

	for _, step := range []struct {
		name, policy string
		one, two     error
	}{
		{"the first", "", nil, auth.ErrCallerRejected},
		{"both", both, nil, nil},
		{"the first stays", oidcPolicy(one.URL), nil, auth.ErrCallerRejected},
		{"the second comes back", both, nil, nil},
		{"the second only", oidcPolicy(two.URL), auth.ErrCallerRejected, nil},
		{"another audience", strings.Replace(oidcPolicy(two.URL), "tokend", "other", 1), auth.ErrCallerRejected, auth.ErrCallerRejected},
	} {
		if step.policy != "" {
			if err := setPolicy(a, mustPolicy(t, step.policy)); err != nil {
				t.Fatal(err)
			}
			untilReady(t, a)
		}
		if _, err := create(t.Context(), a, tokenOne); !errors.Is(err, step.one) {
			t.Errorf("%s: issuer one: %v, want %v", step.name, err, step.one)
		}
		if _, err := create(t.Context(), a, tokenTwo); !errors.Is(err, step.two) {
			t.Errorf("%s: issuer two: %v, want %v", step.name, err, step.two)
		}
	}
	if n := one.Fetches(); n != 1 {
		t.Errorf("the first issuer's keys were fetched %d times, want once", n)
	}
}

// TestSetPolicyUnderLoad checks that no call of a caller that both policies accept fails.
func TestSetPolicyUnderLoad(t *testing.T) {
	issuer := authtest.NewIssuer(t)
	key := authtest.NewKey(t)
	issuer.Publish(map[string]crypto.Signer{"k": key})
	policies := []*auth.Policy{mustPolicy(t, oidcPolicy(issuer.URL)), mustPolicy(t, testPolicy(issuer.URL, true))}
	a := newAuthenticator(t, auth.Config{Policy: policies[0], RootCAs: issuer.RootCAs})
	untilReady(t, a)
	token := authtest.Sign(t, jwt.SigningMethodES256, "k", key, issuer.Claims(nil))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := create(t.Context(), a, token); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 500 {
		if err := setPolicy(a, policies[i%2]); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	wg.Wait()
}

// setPolicy replaces the policy, with new identities.
func setPolicy(a *auth.Authenticator, p *auth.Policy) error { return a.SetPolicy(p, identitiesOf(p)) }

// TestGrantHasItsIdentity checks that a grant has the identity of the policy that decided.
func TestGrantHasItsIdentity(t *testing.T) {
	ca := testcert.NewAuthority(t)
	certificate := verified(t, ca, ca.IssueAs(t, dnsNames("a.internal")))
	policy := mustPolicy(t, "profiles: {acme: {userauthtoken_file: /a}}\ncallers: [{dns_san: a.internal, allow: [CreateToken], profile: acme}]")
	first, second := identitiesOf(policy), identitiesOf(policy)
	a := newAuthenticator(t, auth.Config{Policy: policy, Identities: first})
	grant := func() auth.Grant {
		t.Helper()
		got, err := a.Authenticate(call(t.Context(), certificate), "CreateToken")
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	before := grant()
	if err := a.SetPolicy(policy, second); err != nil {
		t.Fatal(err)
	}
	if after := grant(); before.Identity != first["acme"] || after.Identity != second["acme"] || before.Identity == after.Identity {
		t.Errorf("before: %t, after: %t", before.Identity == first["acme"], after.Identity == second["acme"])
	}
	for _, identities := range []auth.Identities{nil, {"other": first["acme"]}} {
		if err := a.SetPolicy(policy, identities); err == nil || err.Error() != "profile acme has no identity" {
			t.Errorf("a policy without its identities: %v", err)
		}
		if _, err := auth.New(auth.Config{Policy: policy, Identities: identities}); err == nil || err.Error() != "profile acme has no identity" {
			t.Errorf("a new policy without its identities: %v", err)
		}
	}
	if grant().Identity != second["acme"] {
		t.Error("a policy that was refused has changed something")
	}
}

// TestCheckProfiles checks that readiness reports each profile that Atlas refuses, sorted by name,
// and no retired one.
func TestCheckProfiles(t *testing.T) {
	const two = `
profiles: {b: {userauthtoken_file: /b}, a: {userauthtoken_file: /a}}
callers:
  - {dns_san: a.internal, allow: [CreateToken], profile: a}
  - {dns_san: b.internal, allow: [CreateToken], profile: b}
`
	refused := func(why string) *atlas.Identity { return identity(t, provider{why}) }
	p := mustPolicy(t, two)
	a := newAuthenticator(t, auth.Config{Policy: p, Identities: auth.Identities{"a": refused("no a"), "b": refused("no b")}})
	const refusal = "Atlas refuses the service's own credential: atlas: login: error status (HTTP 401): "
	const want = "profile a: " + refusal + "no a\nprofile b: " + refusal + "no b"
	if err := a.Check(); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if err := setPolicy(a, p); err != nil {
		t.Fatal(err)
	}
	if err := a.Check(); err != nil {
		t.Errorf("with other identities: %v", err)
	}
	byDefault := newAuthenticator(t, auth.Config{Policy: anyCertificate.Policy, Identities: auth.Identities{"default": refused("none")}})
	if err := byDefault.Check(); err == nil || !strings.HasPrefix(err.Error(), "profile default: ") {
		t.Errorf("the default profile: %v", err)
	}
}
