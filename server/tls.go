package server

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc/credentials/tls/certprovider"
	"google.golang.org/grpc/credentials/tls/certprovider/pemfile"
)

// TLSFiles are the PEM files of the gRPC and REST listeners. They are read again every few seconds, so a certificate is
// replaced by replacing its file; while a new one cannot be loaded, the last good one is used.
type TLSFiles struct {
	// CertFile holds the server's certificate, followed by any intermediates; KeyFile its private key. Both or neither,
	// and both in the same directory, so that one rename replaces the pair.
	CertFile, KeyFile string
	// ClientCAFile, if set, makes both listeners ask for a client certificate and refuse those not signed by one of its
	// authorities (mTLS). Who shows none is refused too, unless a rule of the policy in force can let in such a caller.
	ClientCAFile string
}

// reloadInterval is how soon a replaced file is noticed.
const reloadInterval = 5 * time.Second

// Enabled reports whether any file is set.
func (f TLSFiles) Enabled() bool { return f != TLSFiles{} }

// Mode is "off", "server" or "mutual".
func (f TLSFiles) Mode() string {
	switch {
	case !f.Enabled():
		return "off"
	case f.ClientCAFile == "":
		return "server"
	}
	return "mutual"
}

// validate reads the files once, so that a mistake in them stops the start: whoever asks for TLS never gets plaintext.
func (f TLSFiles) validate() error {
	var errs []error
	if f.CertFile == "" || f.KeyFile == "" {
		errs = append(errs, ErrTLSIncomplete)
	} else if filepath.Dir(f.CertFile) != filepath.Dir(f.KeyFile) {
		errs = append(errs, fmt.Errorf("TLS certificate %s and key %s must be in the same directory, so that both are replaced at once", f.CertFile, f.KeyFile))
	} else if _, err := tls.LoadX509KeyPair(f.CertFile, f.KeyFile); err != nil {
		errs = append(errs, fmt.Errorf("TLS certificate %s with key %s: %w", f.CertFile, f.KeyFile, err))
	}
	if f.ClientCAFile != "" {
		if pem, err := os.ReadFile(f.ClientCAFile); err != nil {
			errs = append(errs, fmt.Errorf("TLS client CA: %w", err))
		} else if !x509.NewCertPool().AppendCertsFromPEM(pem) {
			errs = append(errs, fmt.Errorf("TLS client CA %s: no PEM certificate in it", f.ClientCAFile))
		}
	}
	return errors.Join(errs...)
}

// watch loads the files and keeps looking at them.
func (f TLSFiles) watch() (certprovider.Provider, error) {
	return pemfile.NewProvider(pemfile.Options{
		CertFile:        f.CertFile,
		KeyFile:         f.KeyFile,
		RootFile:        f.ClientCAFile,
		RefreshDuration: reloadInterval,
	})
}

// clientCerts says at each handshake what is asked of the client, so that a replaced policy counts from the next connection.
type clientCerts func() tls.ClientAuthType

// clientCerts is nil where no client certificate is asked for.
func (c *Config) clientCerts() clientCerts {
	if c.TLS.ClientCAFile == "" {
		return nil
	}
	return func() tls.ClientAuthType {
		if c.Auth.AllowsWithoutCertificate() {
			return tls.VerifyClientCertIfGiven
		}
		return tls.RequireAndVerifyClientCert
	}
}

// tlsConfig serves the provider's present certificate on each handshake. If demand is not nil, it says whether a client has
// to show a certificate; one that is shown has to be signed by one of the provider's present authorities in any case.
func tlsConfig(provider certprovider.Provider, demand clientCerts, protocols ...string) *tls.Config {
	// Without tickets each connection of mTLS is checked against the authorities of its own time.
	base := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protocols, SessionTicketsDisabled: demand != nil}
	outer := base.Clone()
	outer.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		material, err := provider.KeyMaterial(hello.Context())
		if err != nil {
			return nil, err
		}
		c := base.Clone()
		c.Certificates = material.Certs
		if demand != nil {
			c.ClientAuth, c.ClientCAs = demand(), material.Roots
		}
		return c, nil
	}
	return outer
}
