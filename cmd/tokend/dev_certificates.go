package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// devCertificateLifetime is longer than anybody tries anything, and short enough to be worth nothing if a crash leaves
// the files behind.
const devCertificateLifetime = 7 * 24 * time.Hour

// makeDevCertificates writes ca.pem, and server and client with their -key.pem, into dir. The authority's key is forgotten, so
// that nothing else is ever signed with it.
func makeDevCertificates(dir string, ips []net.IP) error {
	caller, err := url.Parse(devCaller)
	if err != nil {
		return err
	}
	ca := devTemplate("tokend dev authority (not real)")
	ca.IsCA, ca.BasicConstraintsValid, ca.MaxPathLenZero, ca.KeyUsage = true, true, true, x509.KeyUsageCertSign
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	server := devTemplate("tokend dev (not real)")
	server.DNSNames, server.IPAddresses = []string{"localhost"}, ips
	server.KeyUsage, server.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	client := devTemplate("tokend dev caller (not real)")
	client.URIs = []*url.URL{caller}
	client.KeyUsage, client.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return errors.Join(
		writePEM(filepath.Join(dir, "ca.pem"), "CERTIFICATE", der),
		issueDev(dir, "server", server, ca, caKey),
		issueDev(dir, "client", client, ca, caKey),
	)
}

// devTemplate is what all of them have. The serial number is made with the certificate.
func devTemplate(name string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		Subject:   pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour),
		NotAfter:  now.Add(devCertificateLifetime),
	}
}

// issueDev writes a certificate and its new key.
func issueDev(dir, name string, template, ca *x509.Certificate, caKey *ecdsa.PrivateKey) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
	if err != nil {
		return err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		writePEM(filepath.Join(dir, name+".pem"), "CERTIFICATE", der),
		writePEM(filepath.Join(dir, name+"-key.pem"), "PRIVATE KEY", pkcs8),
	)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
