package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// lab has the programs and certificates of the servers, and their Atlas.
type lab struct {
	dir string // temporary
	bin string // of the built programs
	// The program of tokend, which serves its profiles if profiling is set.
	tokend    string
	profiling bool
	certs     *certificates
	atlas     *process
	url       string // of Atlas, without /v1
	asks      *http.Client
}

// newLab builds everything and starts Atlas. The caller closes it.
func newLab(ctx context.Context, profiling bool) (*lab, error) {
	dir, err := os.MkdirTemp("", "tokend-bench-")
	if err != nil {
		return nil, err
	}
	l := &lab{dir: dir, bin: filepath.Join(dir, "bin"), profiling: profiling}
	l.tokend = l.program("tokend")
	if err := l.open(ctx); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *lab) open(ctx context.Context) error {
	// As in the image; see the Dockerfile.
	if err := build(ctx, "..", l.bin, "-tags", "grpcnotrace", "./cmd/tokend"); err != nil {
		return err
	}
	if err := build(ctx, ".", l.bin, "-tags", "grpcnotrace", "./peers/atlas", "./peers/echo", "./peers/facade"); err != nil {
		return err
	}
	var err error
	if l.certs, err = newCertificates(l.dir); err != nil {
		return err
	}
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	l.url = "https://" + addr
	l.asks = &http.Client{Transport: &http.Transport{TLSClientConfig: l.certs.clients[0]}, Timeout: 10 * time.Second}
	l.atlas, err = startProcess(ctx, l.dir, l.program("atlas"), "-addr", addr, "-tls-cert-file", l.certs.certFile, "-tls-key-file", l.certs.keyFile)
	if err != nil {
		return err
	}
	return l.atlas.await(ctx, func(ctx context.Context) error {
		_, err := l.calls(ctx)
		return err
	})
}

// build compiles programs of the module in dir.
func build(ctx context.Context, dir, to string, args ...string) error {
	command := exec.CommandContext(ctx, "go", append([]string{"build", "-C", dir, "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", to + "/"}, args...)...) //nolint:gosec // our own packages
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("go build in %s: %w\n%s", dir, err, out)
	}
	return nil
}

func (l *lab) program(name string) string { return filepath.Join(l.bin, name) }

func (l *lab) close() {
	l.atlas.stop()
	_ = os.RemoveAll(l.dir) // a temporary folder
}

// calls returns the number of creates that have reached Atlas.
func (l *lab) calls(ctx context.Context) (int, error) { return l.number(ctx, "/calls") }

// most returns the most concurrent creates at Atlas since the last call of most.
func (l *lab) most(ctx context.Context) (int, error) { return l.number(ctx, "/most") }

func (l *lab) number(ctx context.Context, path string) (int, error) {
	body, err := l.ask(ctx, http.MethodGet, path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(body)
}

// setLatency sets the latency of Atlas's creates.
func (l *lab) setLatency(ctx context.Context, d time.Duration) error {
	_, err := l.ask(ctx, http.MethodPost, "/latency?is="+d.String())
	return err
}

func (l *lab) ask(ctx context.Context, method, path string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, l.url+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := l.asks.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("Atlas answers %s to %s", resp.Status, path) //nolint:staticcheck // a name
	}
	return string(body), err
}

// certificates are an authority, a certificate for servers on loopback, and several for clients.
type certificates struct {
	caFile, certFile, keyFile string
	clients                   []*tls.Config // with different names
}

// clientIdentities is the number of client names, so that none reaches --caller-rate.
const clientIdentities = 16

// authority signs certificates.
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

// issue signs a certificate for a client or a server on loopback.
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
