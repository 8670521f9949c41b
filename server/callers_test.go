package server_test

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth/authtest"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

func spiffeID(path string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: "prod.internal", Path: path}
}

// callerCredentials are what TestCallers calls with: certificates and tokens, good and bad.
type callerCredentials struct {
	issuer, other *authtest.Issuer
	key, otherKey crypto.Signer
	ca, otherCA   testutil.Authority
}

func newCallerCredentials(t *testing.T, ca testutil.Authority, issuer *authtest.Issuer, key crypto.Signer) callerCredentials {
	t.Helper()
	c := callerCredentials{issuer: issuer, other: authtest.NewIssuer(t), key: key, otherKey: authtest.NewKey(t), ca: ca, otherCA: testutil.NewAuthority(t)}
	c.other.Publish(map[string]crypto.Signer{"ec": c.otherKey})
	return c
}

// cert is a certificate of the authority that the service believes.
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

// token is one of the issuer that the policy names, with other claims.
func (c callerCredentials) token(t *testing.T, change map[string]any) string {
	t.Helper()
	return "Bearer " + authtest.Sign(t, jwt.SigningMethodES256, "ec", c.key, c.issuer.Claims(change))
}

// signedWithPublicKey is signed with the issuer's public RSA key, as if that were a secret (RFC
// 8725 §2.1).
func (c callerCredentials) signedWithPublicKey(t *testing.T) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(authtest.RSAKey().Public())
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	return "Bearer " + authtest.Sign(t, jwt.SigningMethodHS256, "rsa", public, c.issuer.Claims(nil))
}

// TestCallers is who may do what: callers by methods by credentials, the same over every transport.
// A refused call costs Atlas nothing, and each call that got as far as being one is on record once,
// under its outcome.
func TestCallers(t *testing.T) {
	t.Parallel()
	issuer, key := authtest.NewIssuer(t), authtest.NewKey(t)
	issuer.Publish(map[string]crypto.Signer{"ec": key, "rsa": authtest.RSAKey()})
	s := testutil.StartIdentityWith(t, auth.Config{RootCAs: issuer.RootCAs, Policy: testutil.MustPolicy(t, fmt.Sprintf(`
profiles:
  acme: {userauthtoken_file: /run/secrets/acme}
callers:
  - {spiffe_id: "spiffe://prod.internal/web", allow: [CreateToken, DeleteToken], profile: acme}
  - {spiffe_id: "spiffe://prod.internal/own", allow: [CreateToken, DeleteToken], profile: passthrough}
  - {dns_san: billing.internal, allow: [CreateToken], profile: acme}
  - {oidc: {issuer: %q, audience: tokend, subject: "ci-*"}, allow: [CreateToken], profile: acme}
`, issuer.URL))}, atlas.Clock{}, emulator.Config{})
	c := newCallerCredentials(t, s.Certs.CA, issuer, key)
	testutil.Eventually(t, func() bool { return s.Auth.Issuers()[issuer.URL].OK }, "the issuer's keys do not come")
	if _, err := s.Source.Credential(testutil.Context(t)); err != nil { // so that each call below is one call of Atlas at most
		t.Fatal(err)
	}

	web, own, billing := c.withURI(t, "/web"), c.withURI(t, "/own"), c.withName(t, "billing.internal")
	unlisted := c.withURI(t, "/unlisted")
	forged := c.otherCA.IssueAs(t, func(x *x509.Certificate) { x.URIs = []*url.URL{spiffeID("/web")} })
	atlasJWT := "JWT " + s.Atlas.Org(0).JWT()
	good := c.token(t, nil)
	unsigned := authtest.Sign(t, jwt.SigningMethodNone, "ec", jwt.UnsafeAllowNoneSignatureType, issuer.Claims(nil))
	in := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
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
		{"nothing, delete", nil, nil, testutil.Delete, testutil.WantMissing},
		{"certificate by SPIFFE ID", web, nil, testutil.Create, testutil.WantCreated},
		{"certificate by SPIFFE ID, delete", web, nil, testutil.Delete, testutil.WantDeleted},
		{"certificate by DNS name", billing, nil, testutil.Create, testutil.WantCreated},
		{"certificate by DNS name in another case", c.withName(t, "Billing.Internal"), nil, testutil.Create, testutil.WantCreated},
		{"certificate, create only, delete", billing, nil, testutil.Delete, testutil.WantNotPermitted},
		{"certificate not in the policy", unlisted, nil, testutil.Create, testutil.WantNotPermitted},
		{"certificate not in the policy, delete", unlisted, nil, testutil.Delete, testutil.WantNotPermitted},
		{"SPIFFE ID with more after it", c.withURI(t, "/web/x"), nil, testutil.Create, testutil.WantNotPermitted},
		{"DNS name with more after it", c.withName(t, "billing.internal.example"), nil, testutil.Create, testutil.WantNotPermitted},
		{"SPIFFE ID decides, not the DNS name beside it", c.cert(t, func(x *x509.Certificate) {
			x.URIs, x.DNSNames = []*url.URL{spiffeID("/unlisted")}, []string{"billing.internal"}
		}), nil, testutil.Create, testutil.WantNotPermitted},
		{"two SPIFFE IDs", c.cert(t, func(x *x509.Certificate) { x.URIs = []*url.URL{spiffeID("/web"), spiffeID("/own")} }), nil, testutil.Create, testutil.WantMissing},
		{"common name only", c.cert(t, func(x *x509.Certificate) { x.Subject = pkix.Name{CommonName: "billing.internal"} }), nil, testutil.Create, testutil.WantMissing},
		{"forged certificate", &forged, nil, testutil.Create, testutil.NoHandshake},
		{"forged certificate with a good token", &forged, bring(good), testutil.Create, testutil.NoHandshake},
		{"expired certificate", c.cert(t, func(x *x509.Certificate) {
			x.URIs, x.NotAfter = []*url.URL{spiffeID("/web")}, time.Now().Add(-time.Minute)
		}), nil, testutil.Create, testutil.NoHandshake},
		{"certificate not yet valid", c.cert(t, func(x *x509.Certificate) {
			x.URIs, x.NotBefore = []*url.URL{spiffeID("/web")}, time.Now().Add(time.Minute)
		}), nil, testutil.Create, testutil.NoHandshake},
		{"certificate for servers", c.cert(t, func(x *x509.Certificate) {
			x.URIs, x.ExtKeyUsage = []*url.URL{spiffeID("/web")}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}), nil, testutil.Create, testutil.NoHandshake},

		{"OIDC token", nil, bring(good), testutil.Create, testutil.WantCreated},
		{"OIDC token, create only, delete", nil, bring(good), testutil.Delete, testutil.WantNotPermitted},
		{"OIDC token for another audience", nil, bring(c.token(t, map[string]any{"aud": "other"})), testutil.Create, testutil.WantCallerRejected},
		{"OIDC token for two audiences", nil, bring(c.token(t, map[string]any{"aud": []string{"tokend", "other"}})), testutil.Create, testutil.WantCallerRejected},
		{"OIDC token of another issuer", nil, bring("Bearer " + authtest.Sign(t, jwt.SigningMethodES256, "ec", c.otherKey, c.other.Claims(nil))), testutil.Create, testutil.WantCallerRejected},
		{"OIDC token in the issuer's name by another", nil, bring("Bearer " + authtest.Sign(t, jwt.SigningMethodES256, "ec", c.otherKey, issuer.Claims(nil))), testutil.Create, testutil.WantCallerRejected},
		{"OIDC token that has expired", nil, bring(c.token(t, map[string]any{"exp": in(-time.Minute)})), testutil.Create, testutil.WantCallerRejected},
		{"OIDC token without exp", nil, bring(c.token(t, map[string]any{"exp": nil})), testutil.Create, testutil.WantCallerRejected},
		{"OIDC token not yet valid", nil, bring(c.token(t, map[string]any{"nbf": in(time.Hour)})), testutil.Create, testutil.WantCallerRejected},
		{"OIDC token with alg none", nil, bring("Bearer " + unsigned), testutil.Create, testutil.WantMalformed},
		{"OIDC token with alg none and a signature", nil, bring("Bearer " + unsigned + "AAAA"), testutil.Create, testutil.WantCallerRejected},
		{"OIDC token with HS256 and the public key", nil, bring(c.signedWithPublicKey(t)), testutil.Create, testutil.WantCallerRejected},
		{"OIDC token with an unknown kid", nil, bring("Bearer " + authtest.Sign(t, jwt.SigningMethodES256, "x", key, issuer.Claims(nil))), testutil.Create, testutil.WantCallerRejected},
		{"OIDC token with the wrong subject", nil, bring(c.token(t, map[string]any{"sub": "dev-1"})), testutil.Create, testutil.WantNotPermitted},
		{"OIDC token without a subject", nil, bring(c.token(t, map[string]any{"sub": nil})), testutil.Create, testutil.WantCallerRejected},
		{"OIDC token as JWT", nil, bring("JWT" + strings.TrimPrefix(good, "Bearer")), testutil.Create, testutil.WantUnknownCaller},
		{"OIDC token with a certificate", web, bring(good), testutil.Create, testutil.WantCreated},
		{"OIDC token with another's certificate", unlisted, bring(good), testutil.Create, testutil.WantCreated},
		{"bad OIDC token with a certificate", web, bring(c.token(t, map[string]any{"aud": "other"})), testutil.Create, testutil.WantCallerRejected},

		{"identity in headers only", nil, claimed, testutil.Create, testutil.WantMissing},
		{"identity in headers only, delete", nil, claimed, testutil.Delete, testutil.WantMissing},
		{"identity in headers, another in the certificate", unlisted, claimed, testutil.Create, testutil.WantNotPermitted},
		{"more in headers than in the certificate", billing, claimed, testutil.Delete, testutil.WantNotPermitted},

		{"Atlas JWT alone", nil, bring(atlasJWT), testutil.Create, testutil.WantUnknownCaller},
		{"Atlas JWT and a profile", web, bring(atlasJWT), testutil.Create, testutil.WantAmbiguous},
		{"Atlas JWT and a profile, delete", web, bring(atlasJWT), testutil.Delete, testutil.WantAmbiguous},
		{"Atlas JWT and a profile, not allowed", billing, bring(atlasJWT), testutil.Delete, testutil.WantNotPermitted},
		{"Atlas JWT passed on", own, bring(atlasJWT), testutil.Create, testutil.WantCreated},
		{"Atlas JWT passed on, delete", own, bring(atlasJWT), testutil.Delete, testutil.WantDeleted},
		{"Atlas JWT passed on, as Bearer", own, bring("Bearer" + strings.TrimPrefix(atlasJWT, "JWT")), testutil.Create, testutil.WantCreated},
		{"no Atlas JWT to pass on", own, nil, testutil.Create, testutil.WantMissing},
		{"no Atlas JWT to pass on, delete", own, nil, testutil.Delete, testutil.WantMissing},
		{"Atlas JWT not in the policy", unlisted, bring(atlasJWT), testutil.Create, testutil.WantNotPermitted},

		{"two authorization values", nil, bring(good, good), testutil.Create, testutil.WantAmbiguous},
		{"two authorization values with a certificate", web, bring(good, atlasJWT), testutil.Create, testutil.WantAmbiguous},
		{"two authorization values to pass on", own, bring(atlasJWT, atlasJWT), testutil.Create, testutil.WantAmbiguous},
		{"a second value by the gateway's name", nil, append(bring(good), "grpc-metadata-authorization", good), testutil.Create, testutil.WantAmbiguous},
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
