package auth_test

import (
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth/authtest"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/testcert"
)

// atlasJWT has the claims of an Atlas JWT and a signature that does not verify.
var atlasJWT = "eyJhbGciOiJIUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(`{"user_id":"u","org_id":"o","exp":1,"orig_iat":1}`)) + ".c2ln"

const (
	web = "spiffe://prod.internal/ns/chat/sa/web"
	ops = "spiffe://prod.internal/ns/chat/sa/ops-1"
)

// testPolicy uses every kind of selector; atlas adds a rule for callers with an Atlas JWT.
func testPolicy(issuer string, atlas bool) string {
	policy := fmt.Sprintf(`
profiles:
  acme: {userauthtoken_file: /run/secrets/acme}
callers:
  - {spiffe_id: %q, allow: [CreateToken], profile: acme}
  - {spiffe_id: "spiffe://prod.internal/ns/*/sa/ops-*", allow: [CreateToken, DeleteToken], profile: acme}
  - {dns_san: billing.internal, allow: [CreateToken], profile: passthrough}
  - {oidc: {issuer: %q, audience: tokend, subject: "ci-*"}, allow: [CreateToken, DeleteToken], profile: acme}
`, web, issuer)
	if atlas {
		policy += "  - {atlas_jwt: true, allow: [CreateToken, DeleteToken], profile: passthrough}\n"
	}
	return policy
}

// outcomes are the outcomes of the table, a letter each.
var outcomes = map[byte]struct {
	profile string
	err     error
}{
	'A': {profile: "acme"},
	'P': {profile: auth.Passthrough},
	'M': {err: auth.ErrMissing},
	'F': {err: auth.ErrMalformed},
	'X': {err: auth.ErrAmbiguous},
	'N': {err: auth.ErrNotPermitted},
	'U': {err: auth.ErrUnknownCaller},
	'R': {err: auth.ErrCallerRejected},
}

// TestCallersMethodsCredentials checks every kind of caller with every kind of credential. A cell
// has the outcomes of CreateToken and DeleteToken.
func TestCallersMethodsCredentials(t *testing.T) {
	ca, foreign := testcert.NewAuthority(t), testcert.NewAuthority(t)
	issuer := authtest.NewIssuer(t)
	key := authtest.NewKey(t)
	issuer.Publish(map[string]crypto.Signer{"k": key})
	token := func(change map[string]any) string {
		return "Bearer " + authtest.Sign(t, jwt.SigningMethodES256, "k", key, issuer.Claims(change))
	}
	certificate := func(change func(*x509.Certificate)) *tls.ConnectionState {
		return verified(t, ca, ca.IssueAs(t, change))
	}
	// A listener that takes any certificate and verifies none.
	unverified := func(cert tls.Certificate) *tls.ConnectionState {
		state, err := handshake(t, ca, tls.RequireAnyClientCert, cert)
		if err != nil {
			t.Fatal(err)
		}
		return &state
	}

	credentials := []struct {
		name string
		md   []string
	}{
		{"none", nil},
		{"Atlas JWT", []string{auth.Header, "JWT " + atlasJWT}},
		{"Atlas JWT as Bearer", []string{auth.Header, "Bearer " + atlasJWT}},
		{"OIDC, in the policy", []string{auth.Header, token(nil)}},
		{"OIDC, not in the policy", []string{auth.Header, token(map[string]any{"sub": "dev-1"})}},
		{"OIDC, expired", []string{auth.Header, token(map[string]any{"exp": time.Now().Add(-time.Second).Unix()})}},
		{"two values", []string{auth.Header, token(nil), auth.Header, "JWT " + atlasJWT}},
		{"another scheme", []string{auth.Header, "Basic " + atlasJWT}},
		{"IDs in metadata", []string{
			"x-spiffe-id", web, "x-forwarded-client-cert", "By=" + ops + ";URI=" + ops, "x-forwarded-user", "ci-1",
			"x-ssl-client-san-uri", ops, "forwarded", "for=billing.internal",
		}},
		{"a gateway's header", []string{auth.SecondHeader, "JWT " + atlasJWT}}, // never a credential
		{"a gateway's header beside one", []string{auth.Header, token(nil), auth.SecondHeader, "JWT " + atlasJWT}},
	}
	anonymous := []string{"MM", "UU", "UU", "AA", "NN", "RR", "XX", "FF", "MM", "MM", "XX"}
	anonymousAtlas := []string{"MM", "PP", "PP", "AA", "NN", "RR", "XX", "FF", "MM", "MM", "XX"}
	known := []string{"NN", "NN", "NN", "AA", "NN", "RR", "XX", "FF", "NN", "NN", "XX"}
	knownWithAtlas := []string{"NN", "PP", "PP", "AA", "NN", "RR", "XX", "FF", "NN", "NN", "XX"}
	asWeb := []string{"AN", "XN", "XN", "AN", "AN", "RR", "XX", "FF", "AN", "AN", "XX"}
	asOps := []string{"AA", "XX", "XX", "AA", "AA", "RR", "XX", "FF", "AA", "AA", "XX"}
	asBilling := []string{"MN", "PN", "PN", "MN", "MN", "RR", "XX", "FF", "MN", "MN", "XX"}

	callers := []struct {
		name       string
		state      *tls.ConnectionState
		want       []string
		wantAtlas  []string // with a rule for atlas_jwt
		identified auth.Caller
	}{
		{"plaintext", nil, anonymous, anonymousAtlas, auth.Caller{}},
		{"SPIFFE ID", certificate(uris(t, web)), asWeb, asWeb, auth.Caller{Kind: auth.KindSPIFFE, Name: web}},
		{"SPIFFE ID by glob", certificate(uris(t, ops)), asOps, asOps, auth.Caller{Kind: auth.KindSPIFFE, Name: ops}},
		{"SPIFFE ID before DNS name", certificate(func(c *x509.Certificate) {
			uris(t, ops)(c)
			dnsNames("billing.internal")(c)
		}), asOps, asOps, auth.Caller{Kind: auth.KindSPIFFE, Name: ops}},
		{"DNS name", certificate(dnsNames("billing.internal")), asBilling, asBilling, auth.Caller{Kind: auth.KindDNS, Name: "billing.internal"}},
		{"DNS name, any case", certificate(dnsNames("BILLING.Internal")), asBilling, asBilling, auth.Caller{Kind: auth.KindDNS, Name: "billing.internal"}},
		{"second DNS name", certificate(dnsNames("x.internal", "billing.internal")), asBilling, asBilling, auth.Caller{Kind: auth.KindDNS, Name: "x.internal"}},
		{"DNS name beside a web URI", certificate(func(c *x509.Certificate) {
			uris(t, "https://example.org/")(c)
			dnsNames("billing.internal")(c)
		}), asBilling, asBilling, auth.Caller{Kind: auth.KindDNS, Name: "billing.internal"}},
		{"not in the policy", certificate(uris(t, "spiffe://prod.internal/ns/chat/sa/other")), known, knownWithAtlas, auth.Caller{Kind: auth.KindSPIFFE, Name: "spiffe://prod.internal/ns/chat/sa/other"}},
		{"another trust domain", certificate(uris(t, "spiffe://evil.internal/ns/chat/sa/ops-1")), known, knownWithAtlas, auth.Caller{Kind: auth.KindSPIFFE, Name: "spiffe://evil.internal/ns/chat/sa/ops-1"}},
		{"a longer path", certificate(uris(t, ops+"/x")), known, knownWithAtlas, auth.Caller{Kind: auth.KindSPIFFE, Name: ops + "/x"}},
		{"common name only", certificate(func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "billing.internal"} }), anonymous, anonymousAtlas, auth.Caller{}},
		{"common name is a SPIFFE ID", certificate(func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: web} }), anonymous, anonymousAtlas, auth.Caller{}},
		{"wildcard DNS name", certificate(dnsNames("*.internal")), anonymous, anonymousAtlas, auth.Caller{}},
		{"two SPIFFE IDs", certificate(uris(t, web, ops)), anonymous, anonymousAtlas, auth.Caller{}},
		{"two SPIFFE IDs and a DNS name", certificate(func(c *x509.Certificate) {
			uris(t, web, ops)(c)
			dnsNames("billing.internal")(c)
		}), anonymous, anonymousAtlas, auth.Caller{}},
		{"SPIFFE ID beside another URI", certificate(uris(t, "https://example.org/", web)), anonymous, anonymousAtlas, auth.Caller{}},
		{"SPIFFE ID with a query", certificate(uris(t, web+"?x")), anonymous, anonymousAtlas, auth.Caller{}},
		{"SPIFFE ID without a path", certificate(uris(t, "spiffe://prod.internal")), anonymous, anonymousAtlas, auth.Caller{}},
		{"SPIFFE ID of an authority", certificate(func(c *x509.Certificate) {
			uris(t, web)(c)
			c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign
		}), anonymous, anonymousAtlas, auth.Caller{}},
		{"SPIFFE ID that may sign certificates", certificate(func(c *x509.Certificate) {
			uris(t, web)(c)
			c.KeyUsage |= x509.KeyUsageCertSign
		}), anonymous, anonymousAtlas, auth.Caller{}},
		{"DNS name that may sign revocations", certificate(func(c *x509.Certificate) {
			dnsNames("billing.internal")(c)
			c.KeyUsage |= x509.KeyUsageCRLSign
		}), anonymous, anonymousAtlas, auth.Caller{}},
		{"forged SPIFFE ID, not verified", unverified(foreign.IssueAs(t, uris(t, web))), anonymous, anonymousAtlas, auth.Caller{}},
		{"forged DNS name, not verified", unverified(foreign.IssueAs(t, dnsNames("billing.internal"))), anonymous, anonymousAtlas, auth.Caller{}},
		{"right authority, not verified", unverified(ca.IssueAs(t, uris(t, web))), anonymous, anonymousAtlas, auth.Caller{}},
	}
	methods := []string{"CreateToken", "DeleteToken"}
	for _, withAtlas := range []bool{false, true} {
		a := newAuthenticator(t, auth.Config{Policy: mustPolicy(t, testPolicy(issuer.URL, withAtlas)), RootCAs: issuer.RootCAs})
		untilReady(t, a)
		for _, caller := range callers {
			for i, credential := range credentials {
				for j, method := range methods {
					t.Run(fmt.Sprintf("atlas_jwt=%v/%s/%s/%s", withAtlas, caller.name, credential.name, method), func(t *testing.T) {
						cells := caller.want
						if withAtlas {
							cells = caller.wantAtlas
						}
						want := outcomes[cells[i][j]]
						got, err := a.Authenticate(call(t.Context(), caller.state, credential.md...), method)
						if !errors.Is(err, want.err) || (err != nil) != (want.err != nil) || got.Profile != want.profile {
							t.Fatalf("got profile %q, %v; want %q, %v", got.Profile, err, want.profile, want.err)
						}
						wantJWT := ""
						if want.profile == auth.Passthrough {
							wantJWT = atlasJWT
						}
						if (got.Identity != nil) != (want.profile == "acme") {
							t.Errorf("the grant has an identity: %t", got.Identity != nil)
						}
						if string(got.JWT) != wantJWT {
							t.Errorf("the wrong JWT is passed on")
						}
						recorded := caller.identified
						unnamed := recorded == (auth.Caller{}) && caller.state != nil && len(caller.state.VerifiedChains) > 0
						if unnamed {
							recorded = unnamedCaller(caller.state)
						}
						if errors.Is(err, auth.ErrMissing) && strings.Contains(err.Error(), "names no caller") != unnamed {
							t.Errorf("the cause is %v", err)
						}
						if err != nil && strings.Contains(err.Error(), atlasJWT) {
							t.Errorf("the error quotes the credential: %v", err)
						}
						if err == nil && got.Caller.Kind == "" {
							t.Errorf("accepted without a name")
						}
						// The record of a refused call names the verified caller.
						if i == 0 && err != nil && caller.name != "second DNS name" && got.Caller != recorded {
							t.Errorf("the caller is %v, want %v", got.Caller, recorded)
						}
					})
				}
			}
		}
		a.Close()
	}
}

// unnamedCaller returns the recorded caller of a verified certificate that names none.
func unnamedCaller(state *tls.ConnectionState) auth.Caller {
	leaf := state.PeerCertificates[0]
	return auth.Caller{Kind: auth.KindCertificate, Name: fmt.Sprintf("serial:%x,sha256:%x", leaf.SerialNumber, sha256.Sum256(leaf.Raw))}
}

// TestFault92 checks that the expiry of a client certificate, and of those above it, ends its use
// on an open connection.
func TestFault92(t *testing.T) {
	t.Parallel()
	for name, lives := range map[string][2]time.Duration{"leaf": {time.Minute, time.Hour}, "authority": {time.Hour, time.Minute}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				chain := []*x509.Certificate{{}, {}}
				uris(t, web)(chain[0])
				for i, lives := range lives {
					chain[i].NotAfter = time.Now().Add(lives)
				}
				state := &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{chain}}
				a := newAuthenticator(t, anyCertificate)
				passing := newAuthenticator(t, auth.Config{})
				check := func(want error) {
					t.Helper()
					if got, err := a.Authenticate(call(t.Context(), state), "CreateToken"); !errors.Is(err, want) || got.Caller.Name != web {
						t.Errorf("one profile: %v, %v; want %v", got.Caller, err, want)
					}
					if got, err := passing.Authenticate(call(t.Context(), state, auth.Header, "JWT "+atlasJWT), "CreateToken"); !errors.Is(err, want) || got.Caller.Name != web {
						t.Errorf("with an Atlas JWT: %v, %v; want %v", got.Caller, err, want)
					}
				}
				check(nil)
				time.Sleep(time.Minute) //nolint:forbidigo // virtual time
				check(nil)
				time.Sleep(time.Nanosecond) //nolint:forbidigo // virtual time
				check(auth.ErrCertificateExpired)
			})
		})
	}
}

// TestFault93 checks that a verified certificate that names no caller is recorded by its serial
// number and fingerprint, in accepted and refused calls.
func TestFault93(t *testing.T) {
	t.Parallel()
	ca := testcert.NewAuthority(t)
	state := verified(t, ca, ca.IssueAs(t, func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "billing"} }))
	for name, tc := range map[string]struct {
		cfg auth.Config
		md  []string
		err error
	}{
		"one profile":                 {anyCertificate, nil, nil},
		"one profile, with a JWT":     {anyCertificate, []string{auth.Header, "JWT " + atlasJWT}, auth.ErrAmbiguous},
		"pass-through":                {auth.Config{}, []string{auth.Header, "JWT " + atlasJWT}, nil},
		"pass-through, without a JWT": {auth.Config{}, nil, auth.ErrMissing},
		"policy":                      {auth.Config{Policy: mustPolicy(t, `callers: [{dns_san: billing, allow: [CreateToken], profile: passthrough}]`)}, nil, auth.ErrMissing},
		"policy, with a JWT":          {auth.Config{Policy: mustPolicy(t, `callers: [{dns_san: billing, allow: [CreateToken], profile: passthrough}]`)}, []string{auth.Header, "JWT " + atlasJWT}, auth.ErrUnknownCaller},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := newAuthenticator(t, tc.cfg).Authenticate(call(t.Context(), state, tc.md...), "CreateToken")
			if want := unnamedCaller(state); got.Caller != want || !errors.Is(err, tc.err) {
				t.Errorf("got %v, %v; want %v, %v", got.Caller, err, want, tc.err)
			}
		})
	}
}

func TestNoPolicy(t *testing.T) {
	ca := testcert.NewAuthority(t)
	withCert := verified(t, ca, ca.IssueAs(t, uris(t, web)))
	a := newAuthenticator(t, auth.Config{})
	for _, tc := range []struct {
		name  string
		state *tls.ConnectionState
		md    []string
		want  auth.Caller
		err   error
	}{
		{"JWT", nil, []string{auth.Header, "JWT " + atlasJWT}, auth.Caller{Kind: auth.KindAtlas}, nil},
		{"Bearer", nil, []string{auth.Header, "Bearer " + atlasJWT}, auth.Caller{Kind: auth.KindAtlas}, nil},
		{"JWT and certificate", withCert, []string{auth.Header, "JWT " + atlasJWT}, auth.Caller{Kind: auth.KindSPIFFE, Name: web}, nil},
		{"certificate only", withCert, nil, auth.Caller{Kind: auth.KindSPIFFE, Name: web}, auth.ErrMissing},
		{"nothing", nil, nil, auth.Caller{}, auth.ErrMissing},
		{"malformed", nil, []string{auth.Header, "JWT x"}, auth.Caller{}, auth.ErrMalformed},
		{"two", nil, []string{auth.Header, "JWT " + atlasJWT, auth.Header, "JWT " + atlasJWT}, auth.Caller{}, auth.ErrAmbiguous},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := a.Authenticate(call(t.Context(), tc.state, tc.md...), "CreateToken")
			if !errors.Is(err, tc.err) || got.Caller != tc.want {
				t.Errorf("got %v, %v; want %v, %v", got.Caller, err, tc.want, tc.err)
			}
			if ok := err == nil; ok != (got.Profile == auth.Passthrough) || ok != (string(got.JWT) == atlasJWT) {
				t.Errorf("got profile %q", got.Profile)
			}
		})
	}
}

var (
	defaultIdentities = auth.Identities{"default": atlas.NewIdentity(atlas.IdentityConfig{})}
	anyCertificate    = auth.Config{Policy: auth.AnyCertificate(auth.Profile{Name: "default"}), Identities: defaultIdentities}
)

func TestDefaultProfile(t *testing.T) {
	ca := testcert.NewAuthority(t)
	named := verified(t, ca, ca.IssueAs(t, uris(t, web)))
	unnamed := verified(t, ca, ca.IssueAs(t, func(*x509.Certificate) {}))
	forged, err := handshake(t, ca, tls.RequireAnyClientCert, testcert.NewAuthority(t).IssueAs(t, uris(t, web)))
	if err != nil {
		t.Fatal(err)
	}
	a := newAuthenticator(t, anyCertificate)
	for _, tc := range []struct {
		name   string
		state  *tls.ConnectionState
		md     []string
		method string
		err    error
	}{
		{"certificate", named, nil, "CreateToken", nil},
		{"delete", named, nil, "DeleteToken", nil},
		{"full name", named, nil, "/forsta.ephemeraltoken.v1.EphemeralTokenService/DeleteToken", nil},
		{"certificate without a name", unnamed, nil, "CreateToken", nil},
		{"another method", named, nil, "/grpc.health.v1.Health/Check", auth.ErrNotPermitted},
		{"another service", named, nil, "/other.Service/CreateToken", auth.ErrNotPermitted},
		{"with a JWT", named, []string{auth.Header, "JWT " + atlasJWT}, "CreateToken", auth.ErrAmbiguous},
		{"two JWTs", named, []string{auth.Header, "JWT " + atlasJWT, auth.Header, "JWT " + atlasJWT}, "CreateToken", auth.ErrAmbiguous},
		{"malformed", named, []string{auth.Header, "x"}, "CreateToken", auth.ErrMalformed},
		{"forged", &forged, nil, "CreateToken", auth.ErrMissing},
		{"plaintext", nil, nil, "CreateToken", auth.ErrMissing},
		{"JWT only", nil, []string{auth.Header, "JWT " + atlasJWT}, "CreateToken", auth.ErrUnknownCaller},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := a.Authenticate(call(t.Context(), tc.state, tc.md...), tc.method)
			if !errors.Is(err, tc.err) || (err == nil) != (got.Profile == "default") || (err == nil) != (got.Identity == defaultIdentities["default"]) || got.JWT != "" {
				t.Errorf("got %+v, %v; want %v", got, err, tc.err)
			}
		})
	}
}

func TestNoPeer(t *testing.T) {
	a := newAuthenticator(t, anyCertificate)
	if _, err := a.Authenticate(t.Context(), "CreateToken"); !errors.Is(err, auth.ErrMissing) {
		t.Errorf("got %v, want ErrMissing", err)
	}
}

// TestGrantWithoutCredential checks that an incomplete grant has no credential.
func TestGrantWithoutCredential(t *testing.T) {
	for _, unusable := range []auth.Grant{{}, {Profile: "acme"}, {Profile: auth.Passthrough}} {
		if _, err := unusable.Credential(t.Context()); !errors.Is(err, auth.ErrMissing) {
			t.Errorf("of %+v: %v, want ErrMissing", unusable, err)
		}
	}
	own := auth.Grant{Profile: auth.Passthrough, JWT: "a.b.c"}
	if got, err := own.Credential(t.Context()); got.JWT != own.JWT || err != nil {
		t.Errorf("got %+v, %v", got, err)
	}
}
