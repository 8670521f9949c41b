package auth_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/testcert"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
func handshake(t testing.TB, ca testcert.Authority, mode tls.ClientAuthType, client ...tls.Certificate) (tls.ConnectionState, error) {
	t.Helper()
	clientEnd, serverEnd := net.Pipe()
	server := tls.Server(serverEnd, &tls.Config{
		Certificates: []tls.Certificate{ca.Issue(t, "localhost")},
		ClientAuth:   mode, ClientCAs: ca.Pool(),
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		conn := tls.Client(clientEnd, &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost", Certificates: client})
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
func verified(t testing.TB, ca testcert.Authority, cert tls.Certificate) *tls.ConnectionState {
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
