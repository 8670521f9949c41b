// Package authtest has an OIDC issuer for tests. It shares no code with what is tested against it.
package authtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// What an Issuer serves.
const (
	PathDiscovery = "/.well-known/openid-configuration"
	PathKeys      = "/keys"
)

// Issuer is an OIDC issuer on loopback, over HTTPS.
type Issuer struct {
	*httptest.Server

	fetches atomic.Int64 // of the keys

	mu       sync.Mutex
	keys     map[string]crypto.Signer    // guarded by mu; published
	override map[string]http.HandlerFunc // guarded by mu; by path
}

// NewIssuer returns an Issuer without keys, which ends with the test.
func NewIssuer(t testing.TB) *Issuer {
	t.Helper()
	i := &Issuer{keys: map[string]crypto.Signer{}, override: map[string]http.HandlerFunc{}}
	i.Server = httptest.NewUnstartedServer(http.HandlerFunc(i.serve))
	i.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	i.StartTLS()
	t.Cleanup(i.Close)
	return i
}

func (i *Issuer) serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == PathKeys {
		i.fetches.Add(1)
	}
	i.mu.Lock()
	handler := i.override[r.URL.Path]
	i.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	switch {
	case handler != nil:
		handler(w, r)
	case r.URL.Path == PathDiscovery:
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": i.URL, "jwks_uri": i.URL + PathKeys})
	case r.URL.Path == PathKeys:
		i.WriteKeys(w)
	default:
		http.NotFound(w, r)
	}
}

// WriteKeys writes the JSON Web Key Set with the published keys.
func (i *Issuer) WriteKeys(w io.Writer) {
	i.mu.Lock()
	defer i.mu.Unlock()
	set := []map[string]string{}
	for kid, key := range i.keys {
		set = append(set, jwk(kid, key))
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"keys": set})
}

// Answer has a path answered differently, or as before if handler is nil.
func (i *Issuer) Answer(path string, handler http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.override[path] = handler
}

// Publish replaces the keys, by kid.
func (i *Issuer) Publish(keys map[string]crypto.Signer) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = maps.Clone(keys)
}

// RootCAs has the authority of the issuer's certificate, and no other.
func (i *Issuer) RootCAs() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(i.Certificate())
	return pool
}

// Fetches is how often the keys were asked for.
func (i *Issuer) Fetches() int64 { return i.fetches.Load() }

// Claims are those of a token for the audience tokend and the subject ci-42, with changes. A nil
// takes a claim away.
func (i *Issuer) Claims(change map[string]any) jwt.MapClaims {
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

// Sign makes a token; without a kid if that is empty.
func Sign(t testing.TB, method jwt.SigningMethod, kid string, key any, claims jwt.MapClaims) string {
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

// NewKey makes a key for ES256.
func NewKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// RSAKey is a key for RS256, the same at each call: to make one takes its time.
var RSAKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

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
