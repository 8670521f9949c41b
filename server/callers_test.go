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
)

var (
	wantUnknownCaller  = want{code: codes.Unauthenticated, http: 401, reason: "CALLER_UNKNOWN"}
	wantCallerRejected = want{code: codes.Unauthenticated, http: 401, reason: "CALLER_REJECTED"}
	wantNotPermitted   = want{code: codes.PermissionDenied, http: 403, reason: "CALLER_NOT_PERMITTED"}
	noHandshake        = want{reason: "no handshake"} // the connection is refused, so there is no answer
)

// checkNoHandshake checks that both listeners refuse the certificate, or that there is none, by what TLS itself says.
func (s *service) checkNoHandshake(t *testing.T, cert *tls.Certificate) {
	t.Helper()
	for _, addr := range []string{s.GRPCAddr().String(), s.HTTPAddr().String()} {
		cfg := s.clientTLSWith(cert)
		cfg.NextProtos = []string{"h2"}
		conn, err := (&tls.Dialer{Config: cfg}).DialContext(testContext(t), "tcp", addr)
		if err == nil { // a client is done before the server has seen its certificate
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			for err == nil { // what the server may have written before that
				_, err = conn.Read(make([]byte, 1024))
			}
			_ = conn.Close()
		}
		if !strings.Contains(err.Error(), "remote error: tls: ") {
			t.Errorf("%s: %v, want TLS to refuse", addr, err)
		}
	}
}

// wantNoHandshake checks that a call never was one.
func wantNoHandshake(t *testing.T, got outcome) {
	t.Helper()
	overGRPC := got.Code == codes.Unavailable
	overREST := got.Code == codes.Unknown && strings.HasPrefix(got.Message, "test: ")
	if !overGRPC && !overREST || got.HTTP != 0 || got.Reason != "" {
		t.Errorf("got %v %s %d (%q), want no handshake", got.Code, got.Reason, got.HTTP, got.Message)
	}
}

func spiffeID(path string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: "prod.internal", Path: path}
}

// callerCredentials are what TestCallers calls with: certificates and tokens, good and bad.
type callerCredentials struct {
	issuer, other *authtest.Issuer
	key, otherKey crypto.Signer
	ca, otherCA   authority
}

func newCallerCredentials(t *testing.T, ca authority, issuer *authtest.Issuer, key crypto.Signer) callerCredentials {
	t.Helper()
	c := callerCredentials{issuer: issuer, other: authtest.NewIssuer(t), key: key, otherKey: authtest.NewKey(t), ca: ca, otherCA: newAuthority(t)}
	c.other.Publish(map[string]crypto.Signer{"ec": c.otherKey})
	return c
}

// cert is a certificate of the authority that the service believes.
func (c callerCredentials) cert(t *testing.T, change func(*x509.Certificate)) *tls.Certificate {
	t.Helper()
	cert := c.ca.issueAs(t, change)
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

// signedWithPublicKey is signed with the issuer's public RSA key, as if that were a secret (RFC 8725 §2.1).
func (c callerCredentials) signedWithPublicKey(t *testing.T) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(authtest.RSAKey().Public())
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	return "Bearer " + authtest.Sign(t, jwt.SigningMethodHS256, "rsa", public, c.issuer.Claims(nil))
}

// TestCallers is who may do what: callers by methods by credentials, the same over every transport. A refused call costs
// Atlas nothing, and each call that got as far as being one is on record once, under its outcome.
func TestCallers(t *testing.T) {
	issuer, key := authtest.NewIssuer(t), authtest.NewKey(t)
	issuer.Publish(map[string]crypto.Signer{"ec": key, "rsa": authtest.RSAKey()})
	s := startIdentityWith(t, auth.Config{RootCAs: issuer.RootCAs, Policy: mustPolicy(t, fmt.Sprintf(`
profiles:
  acme: {userauthtoken_file: /run/secrets/acme}
callers:
  - {spiffe_id: "spiffe://prod.internal/web", allow: [CreateToken, DeleteToken], profile: acme}
  - {spiffe_id: "spiffe://prod.internal/own", allow: [CreateToken, DeleteToken], profile: passthrough}
  - {dns_san: billing.internal, allow: [CreateToken], profile: acme}
  - {oidc: {issuer: %q, audience: tokend, subject: "ci-*"}, allow: [CreateToken], profile: acme}
`, issuer.URL))}, atlas.Clock{}, emulator.Config{})
	c := newCallerCredentials(t, s.certs.ca, issuer, key)
	for start := time.Now(); s.auth.Check() != nil; <-time.After(time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			t.Fatal(s.auth.Check())
		}
	}
	if _, err := s.source.Credential(testContext(t)); err != nil { // so that each call below is one call of Atlas at most
		t.Fatal(err)
	}

	web, own, billing := c.withURI(t, "/web"), c.withURI(t, "/own"), c.withName(t, "billing.internal")
	unlisted := c.withURI(t, "/unlisted")
	forged := c.otherCA.issueAs(t, func(x *x509.Certificate) { x.URIs = []*url.URL{spiffeID("/web")} })
	atlasJWT := "JWT " + s.atlas.Org(0).JWT()
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
		op      operation
		want    want
	}{
		{"nothing", nil, nil, create, wantMissing},
		{"nothing, delete", nil, nil, remove, wantMissing},
		{"certificate by SPIFFE ID", web, nil, create, wantCreated},
		{"certificate by SPIFFE ID, delete", web, nil, remove, wantDeleted},
		{"certificate by DNS name", billing, nil, create, wantCreated},
		{"certificate by DNS name in another case", c.withName(t, "Billing.Internal"), nil, create, wantCreated},
		{"certificate, create only, delete", billing, nil, remove, wantNotPermitted},
		{"certificate not in the policy", unlisted, nil, create, wantNotPermitted},
		{"certificate not in the policy, delete", unlisted, nil, remove, wantNotPermitted},
		{"SPIFFE ID with more after it", c.withURI(t, "/web/x"), nil, create, wantNotPermitted},
		{"DNS name with more after it", c.withName(t, "billing.internal.example"), nil, create, wantNotPermitted},
		{"SPIFFE ID decides, not the DNS name beside it", c.cert(t, func(x *x509.Certificate) {
			x.URIs, x.DNSNames = []*url.URL{spiffeID("/unlisted")}, []string{"billing.internal"}
		}), nil, create, wantNotPermitted},
		{"two SPIFFE IDs", c.cert(t, func(x *x509.Certificate) { x.URIs = []*url.URL{spiffeID("/web"), spiffeID("/own")} }), nil, create, wantMissing},
		{"common name only", c.cert(t, func(x *x509.Certificate) { x.Subject = pkix.Name{CommonName: "billing.internal"} }), nil, create, wantMissing},
		{"forged certificate", &forged, nil, create, noHandshake},
		{"forged certificate with a good token", &forged, bring(good), create, noHandshake},
		{"expired certificate", c.cert(t, func(x *x509.Certificate) {
			x.URIs, x.NotAfter = []*url.URL{spiffeID("/web")}, time.Now().Add(-time.Minute)
		}), nil, create, noHandshake},
		{"certificate not yet valid", c.cert(t, func(x *x509.Certificate) {
			x.URIs, x.NotBefore = []*url.URL{spiffeID("/web")}, time.Now().Add(time.Minute)
		}), nil, create, noHandshake},
		{"certificate for servers", c.cert(t, func(x *x509.Certificate) {
			x.URIs, x.ExtKeyUsage = []*url.URL{spiffeID("/web")}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}), nil, create, noHandshake},

		{"OIDC token", nil, bring(good), create, wantCreated},
		{"OIDC token, create only, delete", nil, bring(good), remove, wantNotPermitted},
		{"OIDC token for another audience", nil, bring(c.token(t, map[string]any{"aud": "other"})), create, wantCallerRejected},
		{"OIDC token for two audiences", nil, bring(c.token(t, map[string]any{"aud": []string{"tokend", "other"}})), create, wantCallerRejected},
		{"OIDC token of another issuer", nil, bring("Bearer " + authtest.Sign(t, jwt.SigningMethodES256, "ec", c.otherKey, c.other.Claims(nil))), create, wantCallerRejected},
		{"OIDC token in the issuer's name by another", nil, bring("Bearer " + authtest.Sign(t, jwt.SigningMethodES256, "ec", c.otherKey, issuer.Claims(nil))), create, wantCallerRejected},
		{"OIDC token that has expired", nil, bring(c.token(t, map[string]any{"exp": in(-time.Minute)})), create, wantCallerRejected},
		{"OIDC token without exp", nil, bring(c.token(t, map[string]any{"exp": nil})), create, wantCallerRejected},
		{"OIDC token not yet valid", nil, bring(c.token(t, map[string]any{"nbf": in(time.Hour)})), create, wantCallerRejected},
		{"OIDC token with alg none", nil, bring("Bearer " + unsigned), create, wantMalformed},
		{"OIDC token with alg none and a signature", nil, bring("Bearer " + unsigned + "AAAA"), create, wantCallerRejected},
		{"OIDC token with HS256 and the public key", nil, bring(c.signedWithPublicKey(t)), create, wantCallerRejected},
		{"OIDC token with an unknown kid", nil, bring("Bearer " + authtest.Sign(t, jwt.SigningMethodES256, "x", key, issuer.Claims(nil))), create, wantCallerRejected},
		{"OIDC token with the wrong subject", nil, bring(c.token(t, map[string]any{"sub": "dev-1"})), create, wantNotPermitted},
		{"OIDC token without a subject", nil, bring(c.token(t, map[string]any{"sub": nil})), create, wantCallerRejected},
		{"OIDC token as JWT", nil, bring("JWT" + strings.TrimPrefix(good, "Bearer")), create, wantUnknownCaller},
		{"OIDC token with a certificate", web, bring(good), create, wantCreated},
		{"OIDC token with another's certificate", unlisted, bring(good), create, wantCreated},
		{"bad OIDC token with a certificate", web, bring(c.token(t, map[string]any{"aud": "other"})), create, wantCallerRejected},

		{"identity in headers only", nil, claimed, create, wantMissing},
		{"identity in headers only, delete", nil, claimed, remove, wantMissing},
		{"identity in headers, another in the certificate", unlisted, claimed, create, wantNotPermitted},
		{"more in headers than in the certificate", billing, claimed, remove, wantNotPermitted},

		{"Atlas JWT alone", nil, bring(atlasJWT), create, wantUnknownCaller},
		{"Atlas JWT and a profile", web, bring(atlasJWT), create, wantAmbiguous},
		{"Atlas JWT and a profile, delete", web, bring(atlasJWT), remove, wantAmbiguous},
		{"Atlas JWT and a profile, not allowed", billing, bring(atlasJWT), remove, wantNotPermitted},
		{"Atlas JWT passed on", own, bring(atlasJWT), create, wantCreated},
		{"Atlas JWT passed on, delete", own, bring(atlasJWT), remove, wantDeleted},
		{"Atlas JWT passed on, as Bearer", own, bring("Bearer" + strings.TrimPrefix(atlasJWT, "JWT")), create, wantCreated},
		{"no Atlas JWT to pass on", own, nil, create, wantMissing},
		{"no Atlas JWT to pass on, delete", own, nil, remove, wantMissing},
		{"Atlas JWT not in the policy", unlisted, bring(atlasJWT), create, wantNotPermitted},

		{"two authorization values", nil, bring(good, good), create, wantAmbiguous},
		{"two authorization values with a certificate", web, bring(good, atlasJWT), create, wantAmbiguous},
		{"two authorization values to pass on", own, bring(atlasJWT, atlasJWT), create, wantAmbiguous},
		{"a second value by the gateway's name", nil, append(bring(good), "grpc-metadata-authorization", good), create, wantAmbiguous},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.want.reason == noHandshake.reason {
				s.checkNoHandshake(t, tc.cert)
			}
			for transport, caller := range s.callersAs(t, tc.cert) {
				t.Run(transport, func(t *testing.T) {
					calls, records := s.atlas.Calls(emulator.Any), len(s.records(t))
					got := caller.call(testContext(t), tc.op, tc.headers...)
					wantCalls, wantRecords, outcome := 0, 1, tc.want.reason
					switch {
					case tc.want.reason == noHandshake.reason:
						wantNoHandshake(t, got)
						wantRecords = 0
					case tc.want.code == codes.OK:
						wantCalls, outcome = 1, "OK"
						fallthrough
					default:
						tc.want.check(t, got)
					}
					if n := s.atlas.Calls(emulator.Any) - calls; n != wantCalls {
						t.Errorf("Atlas was called %d times, want %d", n, wantCalls)
					}
					made := s.records(t)[records:]
					if len(made) != wantRecords || wantRecords == 1 && made[0]["outcome"] != outcome {
						t.Errorf("audit records %v, want %d with the outcome %s", made, wantRecords, outcome)
					}
				})
			}
		})
	}
}
