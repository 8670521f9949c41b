package auth_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"io"
	"log"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/goleak"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/ForstaLabs/ephemeral-token-service/server/auth"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authority signs client certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

var serial atomic.Int64

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial.Add(1)), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// issue makes a certificate for both ends of a connection, as change would have it.
func (a *authority) issue(t testing.TB, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial.Add(1)),
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func uris(t testing.TB, ids ...string) func(*x509.Certificate) {
	t.Helper()
	return func(c *x509.Certificate) {
		for _, id := range ids {
			u, err := url.Parse(id)
			if err != nil {
				t.Fatal(err)
			}
			c.URIs = append(c.URIs, u)
		}
	}
}

func dnsNames(names ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.DNSNames = names }
}

// handshake does one with a real client and server, and returns what the server knows of the client afterwards.
func handshake(t testing.TB, ca *authority, mode tls.ClientAuthType, client ...tls.Certificate) (tls.ConnectionState, error) {
	t.Helper()
	clientEnd, serverEnd := net.Pipe()
	server := tls.Server(serverEnd, &tls.Config{
		Certificates: []tls.Certificate{ca.issue(t, dnsNames("localhost"))},
		ClientAuth:   mode, ClientCAs: ca.pool(),
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		conn := tls.Client(clientEnd, &tls.Config{RootCAs: ca.pool(), ServerName: "localhost", Certificates: client})
		defer conn.Close()
		_, _ = io.ReadAll(conn) // until the server has seen the certificate and closes
	})
	err := server.HandshakeContext(t.Context())
	state := server.ConnectionState()
	_ = server.Close()
	wg.Wait()
	return state, err
}

// call is the context of one call: who is at the other end, and which metadata came.
func call(ctx context.Context, state *tls.ConnectionState, md ...string) context.Context {
	p := &peer.Peer{Addr: &net.TCPAddr{}}
	if state != nil {
		p.AuthInfo = credentials.TLSInfo{State: *state}
	}
	return metadata.NewIncomingContext(peer.NewContext(ctx, p), metadata.Pairs(md...))
}

// verified is a call from the holder of a certificate that a handshake has verified.
func verified(t testing.TB, ca *authority, cert tls.Certificate) *tls.ConnectionState {
	t.Helper()
	state, err := handshake(t, ca, tls.RequireAndVerifyClientCert, cert)
	if err != nil {
		t.Fatal(err)
	}
	return &state
}

// testIssuer is an OIDC issuer on loopback, over HTTPS.
type testIssuer struct {
	*httptest.Server

	mu       sync.Mutex
	keys     map[string]crypto.Signer // published
	override map[string]http.HandlerFunc
	fetches  atomic.Int64 // of the keys
}

const (
	pathDiscovery = "/.well-known/openid-configuration"
	pathKeys      = "/keys"
)

func newIssuer(t testing.TB) *testIssuer {
	t.Helper()
	i := &testIssuer{keys: map[string]crypto.Signer{}, override: map[string]http.HandlerFunc{}}
	i.Server = httptest.NewUnstartedServer(http.HandlerFunc(i.serve))
	i.Config.ErrorLog = log.New(io.Discard, "", 0)
	i.StartTLS()
	t.Cleanup(i.Close)
	return i
}

func (i *testIssuer) serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == pathKeys {
		i.fetches.Add(1)
	}
	i.mu.Lock()
	handler := i.override[r.URL.Path]
	i.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	switch {
	case handler != nil:
		handler(w, r)
	case r.URL.Path == pathDiscovery:
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": i.URL, "jwks_uri": i.URL + pathKeys})
	case r.URL.Path == pathKeys:
		i.writeKeys(w)
	default:
		http.NotFound(w, r)
	}
}

func (i *testIssuer) writeKeys(w io.Writer) {
	i.mu.Lock()
	defer i.mu.Unlock()
	set := []map[string]string{}
	for kid, key := range i.keys {
		set = append(set, jwk(kid, key))
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"keys": set})
}

// answer has a path answered differently, or as before if handler is nil.
func (i *testIssuer) answer(path string, handler http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.override[path] = handler
}

// publish replaces the keys.
func (i *testIssuer) publish(keys map[string]crypto.Signer) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = maps.Clone(keys)
}

func jwk(kid string, key crypto.Signer) map[string]string {
	b64 := base64.RawURLEncoding.EncodeToString
	switch pub := key.Public().(type) {
	case *rsa.PublicKey:
		return map[string]string{"kid": kid, "kty": "RSA", "n": b64(pub.N.Bytes()), "e": b64(big.NewInt(int64(pub.E)).Bytes())}
	case *ecdsa.PublicKey:
		point, err := pub.Bytes() // 4, X, Y
		if err != nil {
			panic(err)
		}
		return map[string]string{"kid": kid, "kty": "EC", "crv": "P-256", "x": b64(point[1:33]), "y": b64(point[33:])}
	case ed25519.PublicKey:
		return map[string]string{"kid": kid, "kty": "OKP", "crv": "Ed25519", "x": b64(pub)}
	}
	panic("unknown kind of key")
}

// claims are those of a token that is accepted, with changes. A nil takes a claim away.
func (i *testIssuer) claims(change map[string]any) jwt.MapClaims {
	now := time.Now()
	c := jwt.MapClaims{
		"iss": i.URL, "aud": "tokend", "sub": "ci-42",
		"iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
	}
	for k, v := range change {
		if c[k] = v; v == nil {
			delete(c, k)
		}
	}
	return c
}

func sign(t testing.TB, method jwt.SigningMethod, kid string, key any, claims jwt.MapClaims) string {
	t.Helper()
	token := jwt.NewWithClaims(method, claims)
	if kid != "" {
		token.Header["kid"] = kid
	}
	s, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func mustPolicy(t testing.TB, text string) *auth.Policy {
	t.Helper()
	p, err := auth.ParsePolicy("policy.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// newAuthenticator closes it at the end, and waits until its issuers have answered.
func newAuthenticator(t testing.TB, cfg auth.Config) *auth.Authenticator {
	t.Helper()
	a, err := auth.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

func untilReady(t testing.TB, a *auth.Authenticator) {
	t.Helper()
	for start := time.Now(); a.Check() != nil; {
		if time.Since(start) > 10*time.Second {
			t.Fatal(a.Check())
		}
		<-time.After(time.Millisecond)
	}
}
