package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/server/certificate"
)

// atlasClient is the client that the flags describe, and the work that keeps its TLS files up to date.
type atlasClient struct {
	*atlas.Client
	upkeep

	mu    sync.Mutex                         // one replacement at a time, or an older one could win
	roots *certificate.File[*x509.CertPool]  // nil: the system's
	cert  *certificate.File[tls.Certificate] // nil: there is none
}

// client makes the Atlas client that the flags describe, or reports all validation errors; its Client is nil if they are of no
// use.
func (f *atlasFlags) client(log *slog.Logger) (*atlasClient, []error) {
	c := &atlasClient{}
	errs := flatten(c.watchRoots(f.CAFile, log), c.watchCertificate(f.ClientCertFile, f.ClientKeyFile, log))
	roots, cert := c.tls()
	client, err := atlas.New(atlas.Config{BaseURL: f.URL, Timeout: f.Timeout, UserAgent: userAgent(), RootCAs: roots, Certificate: cert})
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
	roots, err := c.openCAs("atlas-ca-file", "atlas_ca", file, c.replaceTLS, log)
	c.roots = roots
	return err
}

func (c *atlasClient) watchCertificate(certFile, keyFile string, log *slog.Logger) error {
	switch {
	case certFile == "" && keyFile == "":
		return nil
	case certFile == "" || keyFile == "":
		return errors.New("--atlas-cert-file and --atlas-key-file: a certificate needs its key, and a key its certificate")
	}
	cert, err := certificate.Open(certificate.Options[tls.Certificate]{
		Name: "atlas_client", Paths: []string{certFile, keyFile}, Make: certificate.Pair, OnChange: c.replaceTLS, Logger: log,
	})
	if err != nil {
		var errs []error
		for _, err := range flatten(err) {
			errs = append(errs, fmt.Errorf("--atlas-cert-file and --atlas-key-file: %w", err))
		}
		return errors.Join(errs...)
	}
	c.cert = cert
	c.keep(cert)
	c.metrics = append(c.metrics, cert.Expiry())
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
