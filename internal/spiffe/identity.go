package spiffe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

// Identity is what an agent gives a process. It does not change.
type Identity struct {
	ID spiffeid.ID
	// Certificate is the X.509-SVID, then any intermediates, with the key. Its Leaf is set.
	Certificate tls.Certificate
	// Bundle has the authorities of ID's trust domain, at least one.
	Bundle *x509bundle.Bundle

	chain []*x509.Certificate
	pool  *x509.CertPool // of the Bundle
}

// newIdentity takes the first SVID if there are several, as the Workload API has it (§5.3), or says why it is of no use.
func newIdentity(given *workload.X509SVIDResponse) (*Identity, error) {
	id, err := parseIdentity(given)
	if err == nil {
		err = reload.ForServers(id.Certificate.Leaf)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	return id, nil
}

func parseIdentity(given *workload.X509SVIDResponse) (*Identity, error) {
	if len(given.GetSvids()) == 0 {
		return nil, errors.New("there is no X.509-SVID in it")
	}
	first := given.GetSvids()[0]
	own, err := x509svid.ParseRaw(first.GetX509Svid(), first.GetX509SvidKey())
	if err != nil {
		return nil, err
	}
	domain := own.ID.TrustDomain()
	authorities, err := x509.ParseCertificates(first.GetBundle())
	switch {
	case err != nil:
		return nil, fmt.Errorf("the bundle of %s: %w", domain, err)
	case len(authorities) == 0:
		return nil, fmt.Errorf("the bundle of %s has no authorities in it", domain)
	}
	id := &Identity{
		ID: own.ID, Certificate: certificateOf(own), chain: own.Certificates,
		Bundle: x509bundle.FromX509Authorities(domain, authorities), pool: x509.NewCertPool(),
	}
	for _, authority := range authorities {
		id.pool.AddCert(authority)
	}
	return id, nil
}

func certificateOf(own *x509svid.SVID) tls.Certificate {
	cert := tls.Certificate{PrivateKey: own.PrivateKey, Leaf: own.Certificates[0]}
	for _, of := range own.Certificates {
		cert.Certificate = append(cert.Certificate, of.Raw)
	}
	return cert
}

// expires is when clients begin to refuse it.
func (id *Identity) expires() time.Time { return id.firstOfChain().NotAfter }

func (id *Identity) firstOfChain() *x509.Certificate { return reload.FirstToExpire(id.chain) }

// lastOfBundle is the authority that counts: an agent leaves those before it in the bundle until they expire.
func (id *Identity) lastOfBundle() *x509.Certificate {
	return slices.MaxFunc(id.Bundle.X509Authorities(), func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
}

// Fetch asks the agent once, for whoever wants to know what a Source would have.
func Fetch(ctx context.Context, addr string) (*Identity, error) {
	a := newAgent(addr)
	defer a.CloseIdleConnections()
	once, cancel := context.WithCancel(ctx)
	defer cancel()
	var first *workload.X509SVIDResponse
	err := a.watch(once, func(given *workload.X509SVIDResponse) {
		if first == nil {
			first = given
		}
		cancel()
	})
	if first == nil {
		return nil, err
	}
	return newIdentity(first)
}
