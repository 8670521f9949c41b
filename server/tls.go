package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/ForstaLabs/ephemeral-token-service/server/certificate"
)

// TLSFiles are the PEM files of the gRPC and REST listeners. They are read again every second, so a certificate is replaced
// by replacing its file; while a new one cannot be used, that is logged and the last good one stays.
type TLSFiles struct {
	// CertFile holds the server's certificate, followed by any intermediates; KeyFile its private key. Both or neither.
	// A new certificate is used once the key that belongs to it is there too.
	CertFile, KeyFile string
	// ClientCAFile, if set, makes both listeners ask for a client certificate and refuse those not signed by one of its
	// authorities (mTLS). Who shows none is refused too, unless a rule of the policy in force can let in such a caller.
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

// certificates are what the listeners use at present. The client CA is a file of its own: while one of the two cannot be
// used, the other can be replaced all the same.
type certificates struct {
	server   *certificate.File[tls.Certificate]
	clientCA *certificate.File[*x509.CertPool] // nil: clients are not asked for a certificate
}

// open reads the files, and reports every mistake in them. It is what stops the start: whoever asks for TLS never gets
// plaintext.
func (f TLSFiles) open(log *slog.Logger) (*certificates, error) {
	var (
		c    certificates
		errs []error
		err  error
	)
	if f.CertFile == "" || f.KeyFile == "" {
		errs = append(errs, ErrTLSIncomplete)
	} else if c.server, err = certificate.Open(certificate.Options[tls.Certificate]{
		Name: "server", Paths: []string{f.CertFile, f.KeyFile}, Make: certificate.Pair, Logger: log,
	}); err != nil {
		errs = append(errs, prefix("TLS certificate", err))
	}
	if f.ClientCAFile != "" {
		c.clientCA, err = certificate.Open(certificate.Options[*x509.CertPool]{
			Name: "client_ca", Paths: []string{f.ClientCAFile}, Make: certificate.Authorities, Logger: log,
		})
		if err != nil {
			errs = append(errs, prefix("TLS client CA", err))
		}
	}
	return &c, errors.Join(errs...)
}

// prefix puts what in front of err, or of each if it is several, so that each still is a line of its own.
func prefix(what string, err error) error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return fmt.Errorf("%s: %w", what, err)
	}
	var errs []error
	for _, err := range joined.Unwrap() {
		errs = append(errs, prefix(what, err))
	}
	return errors.Join(errs...)
}

// run keeps the certificates up to date until ctx is done.
func (c *certificates) run(ctx context.Context, interval time.Duration) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.server.Run(ctx, interval) })
	if c.clientCA != nil {
		group.Go(func() error { return c.clientCA.Run(ctx, interval) })
	}
	return group.Wait()
}

func (c *certificates) metrics() []prometheus.Collector {
	all := []prometheus.Collector{c.server.Expiry()}
	if c.clientCA != nil {
		all = append(all, c.clientCA.Expiry())
	}
	return all
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

// config serves on each handshake the certificate of that time. If demand is not nil, it says whether a client has to show a
// certificate; one that is shown has to be signed by one of the client CA's authorities of that time in any case.
func (c *certificates) config(demand clientCerts, protocols ...string) *tls.Config {
	// Without tickets each connection of mTLS is checked against the authorities of its own time.
	base := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protocols, SessionTicketsDisabled: demand != nil}
	outer := base.Clone()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		present := base.Clone()
		present.Certificates = []tls.Certificate{c.server.Get()}
		if demand != nil {
			present.ClientAuth, present.ClientCAs = demand(), c.clientCA.Get()
		}
		return present, nil
	}
	return outer
}
