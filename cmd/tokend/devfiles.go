package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/setup"
)

// passThrough configures the service to pass on the JWT that dev prints.
func passThrough(set *setup.Settings, dir string, em *emulator.Emulator) (devAccess, error) {
	set.Plaintext = true // on loopback only, see checkLoopback
	return devAccess{
		intro:   "# this JWT is the same each time\nexport ATLAS_JWT=" + devJWT(em) + "\n",
		scheme:  "http",
		page:    "Authorize wants the JWT from above",
		client:  "--plaintext",
		curl:    `-H "Authorization: JWT $ATLAS_JWT" `,
		grpcurl: `-plaintext -H "authorization: JWT $ATLAS_JWT" `,
	}, useEmulator(set, dir, em)
}

// devJWT returns the JWT of the first org: the same in each run, because nothing in it depends on
// the time.
func devJWT(em *emulator.Emulator) string {
	from, to := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
	return em.Org(0).MintJWT(emulator.JWT{Age: time.Since(from), Lifetime: time.Until(to)})
}

// useEmulator writes the emulator's authority into dir.
func useEmulator(set *setup.Settings, dir string, em *emulator.Emulator) error {
	set.AtlasURL, set.AtlasCAFile, set.AtlasTimeout = em.URL(), filepath.Join(dir, "atlas-ca.pem"), 10*time.Second
	return os.WriteFile(set.AtlasCAFile, em.CAPEM(), 0o600)
}

// devCaller is the client that the one client certificate is for.
const devCaller = "spiffe://dev.invalid/web"

// holdIdentity configures the service to hold the identity of an emulated org, for one client with
// a certificate. All files are in dir.
func holdIdentity(set *setup.Settings, dir string, em *emulator.Emulator) (devAccess, error) {
	file := func(name string) string { return filepath.Join(dir, name) }
	if err := makeDevCertificates(dir, loopbackIPs(set)); err != nil {
		return devAccess{}, fmt.Errorf("make certificates: %w", err)
	}
	policy := fmt.Sprintf(`profiles:
  acme: {userauthtoken_file: %s}
callers:
  - {spiffe_id: %s, allow: [CreateToken, DeleteToken], profile: acme}
`, yamlText(file("userauthtoken")), yamlText(devCaller))
	err := errors.Join(
		useEmulator(set, dir, em),
		os.WriteFile(file("userauthtoken"), []byte(em.Org(0).UserAuthToken()+"\n"), 0o600),
		os.WriteFile(file("policy.yaml"), []byte(policy), 0o600),
	)
	set.TLSCertFile, set.TLSKeyFile, set.TLSClientCAFile = file("server.pem"), file("server-key.pem"), file("ca.pem")
	set.PolicyFile = file("policy.yaml")
	const files = `"$DEV_FILES/`
	return devAccess{
		intro:   "export DEV_FILES=" + shellText(dir) + "\n",
		scheme:  "https",
		client:  `--ca-file ` + files + `ca.pem" --cert-file ` + files + `client.pem" --key-file ` + files + `client-key.pem"`,
		curl:    `--cacert ` + files + `ca.pem" --cert ` + files + `client.pem" --key ` + files + `client-key.pem" `,
		grpcurl: `-cacert ` + files + `ca.pem" -cert ` + files + `client.pem" -key ` + files + `client-key.pem" `,
		// Over HTTP/2 curl often writes before it reads, and then reports a reset rather than the
		// reason for it.
		refused: &devAccess{scheme: "https", curl: `--http1.1 --cacert ` + files + `ca.pem" `, grpcurl: `-cacert ` + files + `ca.pem" `},
	}, err
}

// loopbackIPs returns the addresses that the server's certificate has to be valid for.
func loopbackIPs(set *setup.Settings) []net.IP {
	ips := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	for _, addr := range []string{set.GRPCAddr, set.HTTPAddr} {
		host, _, _ := net.SplitHostPort(addr) // Open reports a wrong one
		if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() {
			ips = append(ips, ip)
		}
	}
	return ips
}

// devCertificateLifetime is short, because a crash may leave the files behind.
const devCertificateLifetime = 7 * 24 * time.Hour

// makeDevCertificates writes ca.pem, and server and client with their -key.pem, into dir. The
// authority's key is not kept, so that nothing else is ever signed with it.
func makeDevCertificates(dir string, ips []net.IP) error {
	caller, err := url.Parse(devCaller)
	if err != nil {
		return err
	}
	ca := &x509.Certificate{
		Subject: pkix.Name{CommonName: "tokend dev authority (not real)"},
		IsCA:    true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	return errors.Join(
		issueDev(filepath.Join(dir, "ca.pem"), ca, caKey, ca, caKey),
		issueDevPair(dir, "server", &x509.Certificate{
			Subject:  pkix.Name{CommonName: "tokend dev (not real)"},
			DNSNames: []string{"localhost"}, IPAddresses: ips, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		}, ca, caKey),
		issueDevPair(dir, "client", &x509.Certificate{
			Subject: pkix.Name{CommonName: "tokend dev caller (not real)"},
			URIs:    []*url.URL{caller}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}, ca, caKey),
	)
}

// issueDevPair writes a certificate and its new key.
func issueDevPair(dir, name string, cert, ca *x509.Certificate, caKey *ecdsa.PrivateKey) error {
	cert.KeyUsage = x509.KeyUsageDigitalSignature
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		issueDev(filepath.Join(dir, name+".pem"), cert, key, ca, caKey),
		writePEM(filepath.Join(dir, name+"-key.pem"), "PRIVATE KEY", pkcs8),
	)
}

// issueDev writes a certificate. CreateCertificate makes the serial number.
func issueDev(path string, cert *x509.Certificate, key *ecdsa.PrivateKey, ca *x509.Certificate, caKey *ecdsa.PrivateKey) error {
	now := time.Now()
	cert.NotBefore, cert.NotAfter = now.Add(-time.Hour), now.Add(devCertificateLifetime)
	der, err := x509.CreateCertificate(rand.Reader, cert, ca, key.Public(), caKey)
	if err != nil {
		return err
	}
	return writePEM(path, "CERTIFICATE", der)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// shellText quotes text for a shell.
func shellText(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// yamlText quotes text for YAML.
func yamlText(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
