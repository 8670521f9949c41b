package auth_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth/authtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authority signs client certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

var serial atomic.Int64

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key := authtest.NewKey(t)
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

// issue makes a certificate for clients and servers, after change has edited the template.
func (a *authority) issue(t testing.TB, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key := authtest.NewKey(t)
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

// handshake does a real handshake and returns the server's view of it.
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

// call returns the context of a call with this TLS state and metadata.
func call(ctx context.Context, state *tls.ConnectionState, md ...string) context.Context {
	p := &peer.Peer{Addr: &net.TCPAddr{}}
	if state != nil {
		p.AuthInfo = credentials.TLSInfo{State: *state}
	}
	return metadata.NewIncomingContext(peer.NewContext(ctx, p), metadata.Pairs(md...))
}

// verified returns the TLS state of a connection with a verified client certificate.
func verified(t testing.TB, ca *authority, cert tls.Certificate) *tls.ConnectionState {
	t.Helper()
	state, err := handshake(t, ca, tls.RequireAndVerifyClientCert, cert)
	if err != nil {
		t.Fatal(err)
	}
	return &state
}

func mustPolicy(t testing.TB, text string) *auth.Policy {
	t.Helper()
	p, err := auth.ParsePolicy("policy.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// identitiesOf makes an identity for each profile of a policy. None of them can log in.
func identitiesOf(p *auth.Policy) auth.Identities {
	identities := auth.Identities{}
	for _, profile := range p.Profiles() {
		identities[profile.Name] = atlas.NewIdentity(atlas.IdentityConfig{})
	}
	return identities
}

// newAuthenticator closes it at the end. If the Config has a policy and no identities, it gets
// some.
func newAuthenticator(t testing.TB, cfg auth.Config) *auth.Authenticator {
	t.Helper()
	if cfg.Policy != nil && cfg.Identities == nil {
		cfg.Identities = identitiesOf(cfg.Policy)
	}
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
