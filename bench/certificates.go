package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// certificates are an authority, a certificate for servers on loopback, and some for their clients.
type certificates struct {
	caFile, certFile, keyFile string
	clients                   []*tls.Config // each shows another name, and trusts the authority
}

// clientIdentities is how many names clients have, so that none comes near --caller-rate, which
// goes by them.
const clientIdentities = 16

// authority signs.
type authority struct {
	template *x509.Certificate
	key      *ecdsa.PrivateKey
}

func newCertificates(dir string) (*certificates, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	ca := &authority{key: key, template: &x509.Certificate{
		Subject: pkix.Name{CommonName: "bench authority"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}}
	der, err := x509.CreateCertificate(rand.Reader, ca.template, ca.template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	c := &certificates{
		caFile: filepath.Join(dir, "ca.pem"), certFile: filepath.Join(dir, "cert.pem"), keyFile: filepath.Join(dir, "key.pem"),
	}
	if err := writePEM(c.caFile, "CERTIFICATE", der); err != nil {
		return nil, err
	}
	server, err := ca.issue("localhost")
	if err != nil {
		return nil, err
	}
	if err := c.writeServer(server); err != nil {
		return nil, err
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	for i := range clientIdentities {
		cert, err := ca.issue(fmt.Sprintf("caller-%d.bench.internal", i))
		if err != nil {
			return nil, err
		}
		c.clients = append(c.clients, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: []tls.Certificate{cert}})
	}
	return c, nil
}

// issue makes a certificate that is good for both ends of a connection on loopback.
func (a *authority) issue(name string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: a.template.NotBefore, NotAfter: a.template.NotAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.template, key.Public(), a.key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

func (c *certificates) writeServer(cert tls.Certificate) error {
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return err
	}
	if err := writePEM(c.certFile, "CERTIFICATE", cert.Certificate[0]); err != nil {
		return err
	}
	return writePEM(c.keyFile, "PRIVATE KEY", key)
}

func writePEM(file, kind string, der []byte) error {
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
