//go:build unix

package main_test

import (
	"crypto"
	"crypto/tls"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth/authtest"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/testcert"
)

// A caller with an OIDC token and no client certificate is let in where others show one, once the
// issuer's own authority is trusted; and config says what is asked of whom.
func TestOIDCCAFile(t *testing.T) {
	t.Parallel()
	certs, em := makeCertificates(t), startAtlas(t)
	issuer, key := authtest.NewIssuer(t), authtest.NewKey(t)
	issuer.Publish(map[string]crypto.Signer{"k": key})
	policy := writeFile(t, "policy.yaml", fmt.Appendf(nil, `
profiles: {acme: {userauthtoken_file: %s}}
callers:
  - {dns_san: web.internal, allow: [CreateToken, DeleteToken], profile: acme}
  - {oidc: {issuer: %q, audience: tokend, subject: "ci-*"}, allow: [CreateToken], profile: acme}
`, writeFile(t, "secret", []byte(em.Org(0).UserAuthToken())), issuer.URL))
	ca := writeFile(t, "oidc-ca.pem", testcert.EncodePEM("CERTIFICATE", certs.ca.Cert.Raw)) // another's
	flags := certs.flags("--policy-file="+policy, "--oidc-ca-file="+ca)
	if got := tokend(t, append([]string{"config"}, flags...)...); got.code != 1 || !strings.Contains(got.stderr, "issuer "+issuer.URL+": ") || !strings.Contains(got.stderr, "certificate signed by unknown authority") {
		t.Errorf("config, with another's authority: %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	trusted := writeFile(t, "issuer-ca.pem", testcert.EncodePEM("CERTIFICATE", issuer.Certificate().Raw))
	if got := tokend(t, append([]string{"config", "--oidc-ca-file=" + trusted}, flags[:len(flags)-1]...)...); got.code != 0 || !strings.Contains(got.stdout, "\nClient certificates are verified and not required: the policy has rules for callers without one.\n") {
		t.Errorf("config: %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	s := invocation{args: slices.Concat([]string{"serve", "--drain-delay=0s"}, freePorts, flags, atlasFlags(t, em))}.awaitServing(t, em)
	client := newHTTPClient(t, &tls.Config{RootCAs: certs.pool})
	call := func(method string) answer {
		t.Helper()
		token := authtest.Sign(t, jwt.SigningMethodES256, "k", key, issuer.Claims(nil))
		got, err := do(client, newRequest(t, method, "https://"+s.http+restPath, "", "authorization", "Bearer "+token))
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	poll(t, "the issuer not to be trusted", func() bool { return strings.Contains(s.readyz(t), "certificate") })
	if got := call(http.MethodPost); got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, "CALLER_CHECK_UNAVAILABLE") {
		t.Errorf("with another's authority: %d %s", got.status, got.body)
	}
	replace(t, ca, string(testcert.EncodePEM("CERTIFICATE", issuer.Certificate().Raw)))
	poll(t, "the issuer to be trusted", func() bool { return call(http.MethodPost).token() != "" })
	if got := call(http.MethodDelete); got.status != http.StatusForbidden {
		t.Errorf("a delete that the policy does not allow: %d %s", got.status, got.body)
	}
	if got := certificateCall(t, s, certs, http.MethodDelete); got.status != http.StatusNoContent {
		t.Errorf("with a certificate: %d %s", got.status, got.body)
	}
	got, err := do(client, newRequest(t, http.MethodPost, "https://"+s.http+restPath, ""))
	if err != nil || got.status != http.StatusUnauthorized || !strings.Contains(got.body, "CREDENTIAL_MISSING") {
		t.Errorf("with nothing: %v, %d %s", err, got.status, got.body)
	}
}
