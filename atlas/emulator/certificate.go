package emulator

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"time"
)

// CertificateKind selects the server's certificate.
type CertificateKind string

// The certificates. All but the first are for clients to refuse.
const (
	GoodCertificate       CertificateKind = ""            // for localhost, 127.0.0.1 and ::1, from the emulator's authority
	ExpiredCertificate    CertificateKind = "expired"     // good until an hour ago
	OtherHostCertificate  CertificateKind = "other-host"  // for atlas.invalid only
	SelfSignedCertificate CertificateKind = "self-signed" // good, but from nobody's authority
)

const (
	certificateLifetime = 7 * 24 * time.Hour
	clockTolerance      = time.Hour // NotBefore lies this far back
)

// newCertificate makes an authority, has it issue one server certificate and
// forgets the authority's key.
func newCertificate(kind CertificateKind) (server tls.Certificate, caPEM []byte, err error) {
	now := time.Now()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	ca := authorityTemplate(now)
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	leaf := serverTemplate(kind, now)
	issuer, issuerKey := ca, caKey
	if kind == SelfSignedCertificate {
		issuer, issuerKey = leaf, key
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, issuer, key.Public(), issuerKey)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	server = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return server, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), nil
}

// authorityTemplate describes an authority that is good for loopback names
// only (RFC 5280, 4.2.1.10), so that trusting it by mistake costs little.
func authorityTemplate(now time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:                serialNumber(),
		Subject:                     pkix.Name{CommonName: "Atlas emulator authority (not real)"},
		NotBefore:                   now.Add(-clockTolerance),
		NotAfter:                    now.Add(certificateLifetime),
		KeyUsage:                    x509.KeyUsageCertSign,
		BasicConstraintsValid:       true,
		IsCA:                        true,
		MaxPathLenZero:              true,
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         []string{"localhost", "atlas.invalid"},
		PermittedIPRanges: []*net.IPNet{
			{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)},
			{IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)},
		},
	}
}

func serverTemplate(kind CertificateKind, now time.Time) *x509.Certificate {
	template := &x509.Certificate{
		SerialNumber:          serialNumber(),
		Subject:               pkix.Name{CommonName: "Atlas emulator (not real)"},
		NotBefore:             now.Add(-clockTolerance),
		NotAfter:              now.Add(certificateLifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		DNSNames:              []string{"localhost"},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	switch kind {
	case ExpiredCertificate:
		template.NotBefore, template.NotAfter = now.Add(-2*clockTolerance), now.Add(-clockTolerance)
	case OtherHostCertificate:
		template.DNSNames, template.IPAddresses = []string{"atlas.invalid"}, nil
	}
	return template
}

// serialNumber is positive and has 63 random bits, as CAs must at least have.
func serialNumber() *big.Int {
	random := make([]byte, 8)
	_, _ = rand.Read(random) // never fails
	random[0] &= 0x7f
	random[7] |= 1
	return new(big.Int).SetBytes(random)
}
