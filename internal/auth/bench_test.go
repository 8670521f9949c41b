package auth_test

import (
	"crypto"
	"crypto/tls"
	"fmt"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth/authtest"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/testcert"
)

func BenchmarkAuthenticate(b *testing.B) {
	ca := testcert.NewAuthority(b)
	issuer := authtest.NewIssuer(b)
	key := authtest.NewKey(b)
	issuer.Publish(map[string]crypto.Signer{"k": key, "r": authtest.RSAKey()})
	var rules strings.Builder
	rules.WriteString("profiles: {acme: {userauthtoken_file: /run/secrets/acme}}\ncallers:\n")
	for i := range 90 {
		fmt.Fprintf(&rules, "- {spiffe_id: \"spiffe://prod.internal/ns/n%d/sa/web\", allow: [CreateToken], profile: acme}\n", i)
	}
	for i := range 8 {
		fmt.Fprintf(&rules, "- {spiffe_id: \"spiffe://prod.internal/ns/*/sa/job%d-*\", allow: [CreateToken], profile: acme}\n", i)
	}
	fmt.Fprintf(&rules, "- {oidc: {issuer: %q, audience: tokend, subject: \"ci-*\"}, allow: [CreateToken], profile: acme}\n", issuer.URL)
	rules.WriteString("- {atlas_jwt: true, allow: [CreateToken], profile: passthrough}\n")
	a := newAuthenticator(b, auth.Config{Policy: mustPolicy(b, rules.String()), RootCAs: issuer.RootCAs})
	untilReady(b, a)
	for _, bc := range []struct {
		name  string
		state *tls.ConnectionState
		md    []string
	}{
		{"SPIFFE", verified(b, ca, ca.IssueAs(b, uris(b, "spiffe://prod.internal/ns/n89/sa/web"))), nil},
		{"SPIFFE glob", verified(b, ca, ca.IssueAs(b, uris(b, "spiffe://prod.internal/ns/n1/sa/job7-x"))), nil},
		{"Atlas JWT", nil, []string{auth.Header, "JWT " + atlasJWT}},
		{"Atlas JWT as Bearer", nil, []string{auth.Header, "Bearer " + atlasJWT}},
		{"OIDC ES256", nil, []string{auth.Header, "Bearer " + authtest.Sign(b, jwt.SigningMethodES256, "k", key, issuer.Claims(nil))}},
		{"OIDC RS256", nil, []string{auth.Header, "Bearer " + authtest.Sign(b, jwt.SigningMethodRS256, "r", authtest.RSAKey(), issuer.Claims(nil))}},
	} {
		b.Run(bc.name, func(b *testing.B) {
			ctx := call(b.Context(), bc.state, bc.md...)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := a.Authenticate(ctx, "CreateToken"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
