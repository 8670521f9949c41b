package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/server/reload"
)

// atlasClient is the client that the flags describe, and the work that keeps its TLS files up to date.
type atlasClient struct {
	*atlas.Client

	watch []func(context.Context) error

	mu    sync.Mutex                     // one replacement at a time, or an older one could win
	roots *reload.Value[*x509.CertPool]  // nil: the system's
	cert  *reload.Value[tls.Certificate] // nil: there is none
}

// client makes the Atlas client that the flags describe, or reports every mistake in them; its Client is nil if they are of no
// use.
func (f atlasFlags) client(log *slog.Logger) (*atlasClient, []error) {
	c := &atlasClient{}
	timeout, timeoutErr := positiveDuration("atlas-timeout", f.Timeout)
	errs := flatten(timeoutErr, c.watchRoots(f.CAFile, log), c.watchCertificate(f.ClientCertFile, f.ClientKeyFile, log))
	roots, cert := c.tls()
	client, err := atlas.New(atlas.Config{BaseURL: f.URL, Timeout: timeout, UserAgent: userAgent(), RootCAs: roots, Certificate: cert})
	for _, err := range flatten(err) {
		if !strings.HasPrefix(err.Error(), "HTTPS_PROXY") { // the one thing that is not about the URL
			err = fmt.Errorf("--atlas-url: %w", err)
		}
		errs = append(errs, err)
	}
	c.Client = client
	return c, errs
}

func (c *atlasClient) watchRoots(file string, log *slog.Logger) error {
	if file == "" {
		return nil
	}
	roots, err := reload.New([]string{file}, parseCAs, func(*x509.CertPool) { c.replaceTLS() }, reportReload(log, "Atlas CA", file))
	if err != nil {
		return fmt.Errorf("--atlas-ca-file: %s: %w", file, err)
	}
	c.roots = roots
	c.watch = append(c.watch, func(ctx context.Context) error { return roots.Run(ctx, reloadInterval) })
	return nil
}

// parseCAs gives the system's authorities and those in the file.
func parseCAs(contents [][]byte) (*x509.CertPool, error) { return atlas.ParseCAs(contents[0]) }

func (c *atlasClient) watchCertificate(certFile, keyFile string, log *slog.Logger) error {
	switch {
	case certFile == "" && keyFile == "":
		return nil
	case certFile == "" || keyFile == "":
		return errors.New("--atlas-cert-file and --atlas-key-file: a certificate needs its key, and a key its certificate")
	}
	cert, err := reload.New([]string{certFile, keyFile}, func(contents [][]byte) (tls.Certificate, error) {
		return tls.X509KeyPair(contents[0], contents[1])
	}, func(tls.Certificate) { c.replaceTLS() }, reportReload(log, "Atlas client certificate", certFile))
	if err != nil {
		return fmt.Errorf("--atlas-cert-file and --atlas-key-file: %w", err)
	}
	c.cert = cert
	c.watch = append(c.watch, func(ctx context.Context) error { return cert.Run(ctx, reloadInterval) })
	return nil
}

// tls is what the files say at present.
func (c *atlasClient) tls() (roots *x509.CertPool, cert *tls.Certificate) {
	if c.roots != nil {
		roots = c.roots.Get()
	}
	if c.cert != nil {
		present := c.cert.Get()
		cert = &present
	}
	return roots, cert
}

func (c *atlasClient) replaceTLS() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.SetTLS(c.tls())
}
