package spiffetest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
)

// TrustDomain has a name, and an authority that signs its SVIDs.
type TrustDomain struct {
	Name string
	// Authority signs; Others are in the bundle too.
	Authority *x509.Certificate
	Others    []*x509.Certificate

	t   testing.TB
	key *ecdsa.PrivateKey
}

// NewTrustDomain returns a trust domain with a new authority. The changes are made before it signs
// itself.
func NewTrustDomain(t testing.TB, name string, changes ...func(*x509.Certificate)) *TrustDomain {
	t.Helper()
	d := &TrustDomain{Name: name, t: t}
	template := &x509.Certificate{
		Subject: pkix.Name{Organization: []string{"SPIFFE"}}, URIs: []*url.URL{{Scheme: "spiffe", Host: name}},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	for _, change := range changes {
		change(template)
	}
	d.Authority, d.key = d.sign(template, template, nil)
	return d
}

// Rotated returns the trust domain with a new authority. Its bundle has the old one too.
func (d *TrustDomain) Rotated() *TrustDomain {
	d.t.Helper()
	next := NewTrustDomain(d.t, d.Name)
	next.Others = []*x509.Certificate{d.Authority}
	return next
}

// Alone returns the trust domain with only its authority in the bundle.
func (d *TrustDomain) Alone() *TrustDomain {
	alone := *d
	alone.Others = nil
	return &alone
}

// sign issues the certificate with a key of its own, valid for an hour unless the template says
// otherwise. It signs itself if key is nil.
func (d *TrustDomain) sign(template, parent *x509.Certificate, key *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	d.t.Helper()
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		d.t.Fatal(err)
	}
	if key == nil {
		key = own
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		d.t.Fatal(err)
	}
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(time.Hour)
	}
	template.NotBefore = time.Now().Add(-time.Minute)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, own.Public(), key)
	if err != nil {
		d.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		d.t.Fatal(err)
	}
	return cert, own
}

func (d *TrustDomain) id() string { return "spiffe://" + d.Name }

// bundle returns the authorities in DER, one after the other.
func (d *TrustDomain) bundle() []byte {
	all := bytes.Clone(d.Authority.Raw)
	for _, authority := range d.Others {
		all = append(all, authority.Raw...)
	}
	return all
}

// Pool returns the bundle, for a client.
func (d *TrustDomain) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(d.Authority)
	for _, authority := range d.Others {
		pool.AddCert(authority)
	}
	return pool
}

// SVID is an X.509-SVID that the authority of a trust domain has signed.
type SVID struct {
	ID     string
	Domain *TrustDomain
	Cert   *x509.Certificate
	Key    *ecdsa.PrivateKey
}

// Issue returns an SVID for both ends of a connection, which also names localhost. The changes are
// made before it is signed.
func (d *TrustDomain) Issue(path string, changes ...func(*x509.Certificate)) *SVID {
	d.t.Helper()
	template := &x509.Certificate{
		URIs:        []*url.URL{{Scheme: "spiffe", Host: d.Name, Path: path}},
		DNSNames:    []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, change := range changes {
		change(template)
	}
	s := &SVID{ID: d.id() + path, Domain: d}
	s.Cert, s.Key = d.sign(template, d.Authority, d.key)
	return s
}

// TLS returns the SVID for crypto/tls.
func (s *SVID) TLS() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{s.Cert.Raw}, PrivateKey: s.Key, Leaf: s.Cert}
}

// MarshalKey returns its key in PKCS #8.
func (s *SVID) MarshalKey() []byte {
	s.Domain.t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(s.Key)
	if err != nil {
		s.Domain.t.Fatal(err)
	}
	return der
}

func (s *SVID) message() *workload.X509SVID {
	return &workload.X509SVID{SpiffeId: s.ID, X509Svid: s.Cert.Raw, X509SvidKey: s.MarshalKey(), Bundle: s.Domain.bundle()}
}
