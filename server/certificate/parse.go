package certificate

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// ErrCutShort is a file that ends, or goes on with something else, in the middle of a PEM block.
var ErrCutShort = errors.New("a PEM block in it is not whole")

// Parse returns the certificates of a PEM file, at least one. What the standard library would leave out without a word is an
// error: of a file that is cut short in its second certificate, the first is not what its owner meant.
func Parse(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	blocks := 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		blocks++
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	switch {
	case blocks != bytes.Count(data, []byte("-----BEGIN ")):
		return nil, ErrCutShort
	case len(certs) == 0:
		return nil, errors.New("no certificate in it: give a file with PEM blocks of type CERTIFICATE")
	}
	return certs, nil
}

// Pair is what [Open] makes of a certificate's file, with any intermediates, and the file of its private key.
func Pair(_ []*x509.Certificate, contents [][]byte) (tls.Certificate, error) {
	return tls.X509KeyPair(contents[0], contents[1])
}

// Authorities is what [Open] makes of a file of certificate authorities: a pool of these and no others.
func Authorities(certs []*x509.Certificate, _ [][]byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	for _, cert := range certs {
		pool.AddCert(cert)
	}
	return pool, nil
}
