package server_test

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth/authtest"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/testcert"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

func spiffeID(path string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: "prod.internal", Path: path}
}

// callerCredentials makes certificates and OIDC tokens, good and bad.
type callerCredentials struct {
	issuer *authtest.Issuer
	key    crypto.Signer
	ca     testcert.Authority
}

// cert issues a certificate of the authority that the service trusts.
func (c callerCredentials) cert(t *testing.T, change func(*x509.Certificate)) *tls.Certificate {
	t.Helper()
	cert := c.ca.IssueAs(t, change)
	return &cert
}

func (c callerCredentials) withURI(t *testing.T, path string) *tls.Certificate {
	t.Helper()
	return c.cert(t, func(x *x509.Certificate) { x.URIs = []*url.URL{spiffeID(path)} })
}

func (c callerCredentials) withName(t *testing.T, name string) *tls.Certificate {
	t.Helper()
	return c.cert(t, func(x *x509.Certificate) { x.DNSNames = []string{name} })
}

// token returns a token of the policy's issuer with these claims changed.
func (c callerCredentials) token(t *testing.T, change map[string]any) string {
	t.Helper()
	return "Bearer " + authtest.Sign(t, jwt.SigningMethodES256, "ec", c.key, c.issuer.Claims(change))
}

// TestCallers checks callers, methods and credentials over each transport, the calls to Atlas that
// they cause, and their audit records. internal/auth tests the identities in detail.
func TestCallers(t *testing.T) {
	t.Parallel()
	issuer, key := authtest.NewIssuer(t), authtest.NewKey(t)
	issuer.Publish(map[string]crypto.Signer{"ec": key})
	s := testutil.StartIdentityWith(t, auth.Config{RootCAs: issuer.RootCAs, Policy: testutil.MustPolicy(t, fmt.Sprintf(`
profiles:
  acme: {userauthtoken_file: /run/secrets/acme}
callers:
  - {spiffe_id: "spiffe://prod.internal/web", allow: [CreateToken, DeleteToken], profile: acme}
  - {spiffe_id: "spiffe://prod.internal/own", allow: [CreateToken, DeleteToken], profile: passthrough}
  - {dns_san: billing.internal, allow: [CreateToken], profile: acme}
  - {oidc: {issuer: %q, audience: tokend, subject: "ci-*"}, allow: [CreateToken], profile: acme}
`, issuer.URL))}, atlas.Clock{}, emulator.Config{})
	c := callerCredentials{issuer, key, s.Certs.CA}
	testutil.Eventually(t, func() bool { return s.Auth.Issuers()[issuer.URL].OK }, "the issuer's keys are not fetched")
	if _, err := s.Identity.Credential(testutil.Context(t)); err != nil { // so that a call below is one call to Atlas at most
		t.Fatal(err)
	}

	web, own, billing := c.withURI(t, "/web"), c.withURI(t, "/own"), c.withName(t, "billing.internal")
	unlisted := c.withURI(t, "/unlisted")
	forged := testcert.NewAuthority(t).IssueAs(t, func(x *x509.Certificate) { x.URIs = []*url.URL{spiffeID("/web")} })
	atlasJWT := "JWT " + s.Atlas.Org(0).JWT()
	good := c.token(t, nil)
	claimed := []string{
		"x-spiffe-id", "spiffe://prod.internal/web", "x-forwarded-client-cert", "By=spiffe://prod.internal/tokend;URI=spiffe://prod.internal/web",
		"x-forwarded-for", "127.0.0.1", "forwarded", "for=127.0.0.1", "x-ssl-client-verify", "SUCCESS", "x-ssl-client-s-dn", "CN=billing.internal",
	}
	bring := func(values ...string) (headers []string) {
		for _, value := range values {
			headers = append(headers, "authorization", value)
		}
		return headers
	}
	for _, tc := range []struct {
		name    string
		cert    *tls.Certificate
		headers []string
		op      testutil.Operation
		want    testutil.Want
	}{
		{"nothing", nil, nil, testutil.Create, testutil.WantMissing},
		{"certificate by SPIFFE ID", web, nil, testutil.Create, testutil.WantCreated},
		{"certificate by SPIFFE ID, delete", web, nil, testutil.Delete, testutil.WantDeleted},
		{"certificate, create only, delete", billing, nil, testutil.Delete, testutil.WantNotPermitted},
		{"certificate not in the policy", unlisted, nil, testutil.Create, testutil.WantNotPermitted},
		{"forged certificate", &forged, nil, testutil.Create, testutil.NoHandshake},
		{"expired certificate", c.cert(t, func(x *x509.Certificate) {
			x.URIs, x.NotAfter = []*url.URL{spiffeID("/web")}, time.Now().Add(-time.Minute)
		}), nil, testutil.Create, testutil.NoHandshake},

		{"OIDC token", nil, bring(good), testutil.Create, testutil.WantCreated},
		{"OIDC token, create only, delete", nil, bring(good), testutil.Delete, testutil.WantNotPermitted},
		{"OIDC token for another audience", nil, bring(c.token(t, map[string]any{"aud": "other"})), testutil.Create, testutil.WantCallerRejected},
		{"OIDC token with a certificate", web, bring(good), testutil.Create, testutil.WantCreated},

		{"identity in headers only", nil, claimed, testutil.Create, testutil.WantMissing},
		{"identity in headers, another in the certificate", unlisted, claimed, testutil.Create, testutil.WantNotPermitted},

		{"Atlas JWT alone", nil, bring(atlasJWT), testutil.Create, testutil.WantUnknownCaller},
		{"Atlas JWT and a profile", web, bring(atlasJWT), testutil.Create, testutil.WantAmbiguous},
		{"Atlas JWT passed on", own, bring(atlasJWT), testutil.Create, testutil.WantCreated},
		{"Atlas JWT passed on, delete", own, bring(atlasJWT), testutil.Delete, testutil.WantDeleted},

		{"two authorization values", nil, bring(good, good), testutil.Create, testutil.WantAmbiguous},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.want.Reason == testutil.NoHandshake.Reason {
				s.CheckNoHandshake(t, tc.cert)
			}
			for transport, caller := range s.CallersAs(t, tc.cert) {
				t.Run(transport, func(t *testing.T) {
					calls, records := s.Atlas.Calls(emulator.Any), len(s.Records(t))
					got := caller.Call(testutil.Context(t), tc.op, tc.headers...)
					wantCalls, wantRecords, outcome := 0, 1, tc.want.Reason
					switch {
					case tc.want.Reason == testutil.NoHandshake.Reason:
						testutil.WantNoHandshake(t, got)
						wantRecords = 0
					case tc.want.Code == codes.OK:
						wantCalls, outcome = 1, "OK"
						fallthrough
					default:
						tc.want.Check(t, got)
					}
					if n := s.Atlas.Calls(emulator.Any) - calls; n != wantCalls {
						t.Errorf("Atlas was called %d times, want %d", n, wantCalls)
					}
					made := s.Records(t)[records:]
					if len(made) != wantRecords || wantRecords == 1 && made[0]["outcome"] != outcome {
						t.Errorf("audit records %v, want %d with the outcome %s", made, wantRecords, outcome)
					}
				})
			}
		})
	}
}

// TestCallerRateWithoutAtlas checks that calls that do not reach Atlas are not charged to their
// caller.
func TestCallerRateWithoutAtlas(t *testing.T) {
	testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
		s := v.Start(t, testutil.Plaintext, func(c *server.Config, _ *atlas.Config) { c.CallerRate = 3 })
		jwt := testutil.Credential(s.Atlas)
		for _, c := range s.Callers(t) {
			testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, jwt...)) // makes the caller known
			remove := s.Atlas.Inject(emulator.Fault{Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"60"}}})
			for range 10 {
				for _, op := range []testutil.Operation{testutil.Create, testutil.Delete} {
					if got := c.Call(testutil.Context(t), op, jwt...); got.Reason != "ATLAS_RATE_LIMITED" {
						t.Fatalf("%s: %s, want ATLAS_RATE_LIMITED: only one call has reached Atlas", op, got.Reason)
					}
				}
			}
			remove()
			<-time.After(2 * time.Minute) // until Atlas may be called again
		}
	})
}
