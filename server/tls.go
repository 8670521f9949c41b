package server

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/grpc/credentials/tls/certprovider"
)

// TLSFiles are the PEM files of the gRPC and REST listeners. They are read again and again, so a certificate is
// replaced by replacing its file; while a new one cannot be loaded, the last good one is used.
type TLSFiles struct {
	// CertFile holds the server's certificate, followed by any intermediates; KeyFile its private key. Both or neither,
	// and both in the same directory, so that one rename replaces the pair.
	CertFile, KeyFile string
	// ClientCAFile, if set, makes both listeners ask for a client certificate and refuse those not signed by one of its
	// authorities (mTLS).
	ClientCAFile string
}

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

// tlsConfig serves the provider's present certificate on each handshake. With mutual set, a client has to show one that
// the provider's present authorities have signed.
func tlsConfig(provider certprovider.Provider, mutual bool, protocols ...string) *tls.Config {
	// Without tickets each connection of mTLS is checked against the authorities of its own time.
	base := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protocols, SessionTicketsDisabled: mutual}
	outer := base.Clone()
	outer.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		material, err := provider.KeyMaterial(hello.Context())
		if err != nil {
			return nil, err
		}
		c := base.Clone()
		c.Certificates = material.Certs
		if mutual {
			c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, material.Roots
		}
		return c, nil
	}
	return outer
}
