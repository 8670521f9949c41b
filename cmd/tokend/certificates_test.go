//go:build unix

package main_test

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
	"os"
	"path/filepath"
	"testing"
	"time"
)

// certificates are the PEM files of an authority, and of a server and a client that it vouches for.
type certificates struct {
	caFile, serverCert, serverKey, clientCert, clientKey string

	pool   *x509.CertPool
	client tls.Certificate
	ca     *x509.Certificate
	caKey  *ecdsa.PrivateKey
}

func makeCertificates(t *testing.T) certificates {
	t.Helper()
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "Test authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caKey := sign(t, ca, nil, nil)
	server := &x509.Certificate{DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	serverKey := sign(t, server, ca, caKey)
	client := &x509.Certificate{Subject: pkix.Name{CommonName: "Test client"}, DNSNames: []string{"web.internal"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	clientKey := sign(t, client, ca, caKey)

	dir := t.TempDir()
	c := certificates{
		caFile:     filepath.Join(dir, "ca.pem"),
		serverCert: filepath.Join(dir, "server.pem"), serverKey: filepath.Join(dir, "server-key.pem"),
		clientCert: filepath.Join(dir, "client.pem"), clientKey: filepath.Join(dir, "client-key.pem"),
		pool:   x509.NewCertPool(),
		ca:     ca,
		caKey:  caKey,
		client: tls.Certificate{Certificate: [][]byte{client.Raw}, PrivateKey: clientKey},
	}
	c.pool.AddCert(ca)
	writePEM(t, c.caFile, "CERTIFICATE", ca.Raw)
	writePEM(t, c.serverCert, "CERTIFICATE", server.Raw)
	writePEM(t, c.clientCert, "CERTIFICATE", client.Raw)
	writePEM(t, c.serverKey, "PRIVATE KEY", marshalKey(t, serverKey))
	writePEM(t, c.clientKey, "PRIVATE KEY", marshalKey(t, clientKey))
	return c
}

// sign makes cert real: with a new key, signed by parent, or by itself without one.
func sign(t *testing.T, cert, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if parent == nil {
		parent, parentKey = cert, key
	}
	cert.SerialNumber = big.NewInt(time.Now().UnixNano())
	if cert.NotAfter.IsZero() {
		cert.NotBefore, cert.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	*cert = *made
	return key
}

func marshalKey(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
