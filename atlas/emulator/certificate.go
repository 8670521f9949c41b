package emulator

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"time"
)

// CertificateKind selects the server's certificate.
type CertificateKind string

// The certificates. All but the first are for clients to refuse.
const (
	GoodCertificate       CertificateKind = ""            // for localhost, 127.0.0.1 and ::1
	ExpiredCertificate    CertificateKind = "expired"     // good until an hour ago
	OtherHostCertificate  CertificateKind = "other-host"  // for atlas.invalid only
	SelfSignedCertificate CertificateKind = "self-signed" // valid, but not the one in CAPEM
)

// newCertificate makes a server certificate, and what to trust. That is the certificate itself: it
// is not an authority, so trusting it by mistake costs little.
func newCertificate(kind CertificateKind) (server tls.Certificate, trusted []byte, err error) {
	now := time.Now()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Atlas emulator (not real)"},
		NotBefore:             now.Add(-time.Hour), // for a client whose clock is late
		NotAfter:              now.Add(7 * 24 * time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		DNSNames:              []string{"localhost"},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	switch kind {
	case ExpiredCertificate:
		template.NotBefore, template.NotAfter = now.Add(-2*time.Hour), now.Add(-time.Hour)
	case OtherHostCertificate:
		template.DNSNames, template.IPAddresses = []string{"atlas.invalid"}, nil
	}
	server, err = selfSigned(template)
	other := server
	if err == nil && kind == SelfSignedCertificate {
		other, err = selfSigned(template)
	}
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	return server, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Certificate[0]}), nil
}

func selfSigned(template *x509.Certificate) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key) // draws a serial number
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
