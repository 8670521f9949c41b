package reload

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Certificate watches a certificate's PEM file, with any intermediates, and the file of its private key. name is what the
// gauge and the log call it, such as "server". fit says what else is wrong with a certificate for its use; it and onChange may
// be nil.
//
// One that has expired is used: it was fit once, it is replaced while the program runs, and a program that did not start could
// not wait for that. One that is not valid yet was never fit.
func (w *Watcher) Certificate(name, certFile, keyFile string, fit func(*x509.Certificate) error, onChange func()) (func() tls.Certificate, error) {
	return watchPEM(w, name, []string{certFile, keyFile}, onChange, func(certs []*x509.Certificate, contents [][]byte) (tls.Certificate, error) {
		pair, err := tls.X509KeyPair(contents[0], contents[1])
		switch leaf := certs[0]; {
		case err != nil && isEncrypted(contents[1]):
			return pair, errors.New("the key is encrypted, and nobody is there to give its passphrase: write it out without one (openssl pkey -in … -out …)")
		case err != nil:
			return pair, err
		case time.Now().Before(leaf.NotBefore):
			return pair, Retry(fmt.Errorf("the certificate is not valid before %s", leaf.NotBefore.UTC().Format(time.RFC3339)))
		case fit != nil:
			return pair, fit(leaf)
		}
		return pair, nil
	})
}

// isEncrypted reports whether there is a private key in a PEM file that takes a passphrase to read.
func isEncrypted(data []byte) bool {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["Proc-Type"] == "4,ENCRYPTED" {
			return true
		}
	}
	return false
}

// ForServers reports a certificate that clients refuse from a server, for [Watcher.Certificate].
func ForServers(cert *x509.Certificate) error {
	named := slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageAny)
	if named || len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) == 0 { // without any it is for everything (RFC 5280 §4.2.1.12)
		return nil
	}
	return errors.New("the certificate is not for servers: its extended key usage lacks serverAuth")
}

// Authorities is [Watcher.Certificate] for a PEM file of certificate authorities, which are added to those that base makes:
// x509.SystemCertPool, or nil for none. With nil they are there to sign for others, so each has to be an authority; beside the
// system's there may also be the certificate of one server.
func (w *Watcher) Authorities(name, file string, base func() (*x509.CertPool, error), onChange func()) (func() *x509.CertPool, error) {
	return watchPEM(w, name, []string{file}, onChange, func(certs []*x509.Certificate, _ [][]byte) (*x509.CertPool, error) {
		pool := x509.NewCertPool()
		if base != nil {
			var err error
			if pool, err = base(); err != nil {
				return nil, fmt.Errorf("the system's certificate authorities: %w", err)
			}
		}
		for i, cert := range certs {
			if base == nil && !isAuthority(cert) {
				return nil, fmt.Errorf("certificate %d (%s) is no authority (CA:TRUE is missing): give the one that signs callers' certificates, not a caller's", i+1, cert.Subject)
			}
			pool.AddCert(cert)
		}
		return pool, nil
	})
}

// isAuthority reports whether crypto/x509 would believe a signature of cert's at all.
func isAuthority(cert *x509.Certificate) bool {
	return cert.IsCA || cert.Version < 3 && !cert.BasicConstraintsValid
}

// inUse is what was made of a PEM file, and which of the certificates in it expires first.
type inUse[T any] struct {
	made  T
	first *x509.Certificate
}

// watchPEM watches files of which the first has certificates in it.
func watchPEM[T any](w *Watcher, name string, paths []string, onChange func(), parse func([]*x509.Certificate, [][]byte) (T, error)) (func() T, error) {
	log := w.Logger.With(slog.String("certificate", name), slog.String("file", paths[0]))
	get, err := Watch(w, Files[inUse[T]]{
		Paths: paths, What: "certificate", Name: name, Logger: log,
		Parse: func(contents [][]byte) (inUse[T], error) {
			certs, err := parseCertificates(contents[0])
			if err != nil {
				return inUse[T]{}, fmt.Errorf("%s: %w", strings.Join(paths, " with "), err)
			}
			made, err := parse(certs, contents)
			if err != nil {
				return inUse[T]{}, fmt.Errorf("%s: %w", strings.Join(paths, " with "), err)
			}
			return inUse[T]{made, FirstToExpire(certs)}, nil
		},
		OnChange: func(v inUse[T]) {
			if onChange != nil {
				onChange()
			}
			tellReplaced(log, v.first)
		},
	})
	if err != nil {
		return nil, err
	}
	warn(log, get().first)
	return func() T { return get().made }, w.showLife(name, func() *x509.Certificate { return get().first })
}

// FirstToExpire is what matters of several, of which there has to be one, because somebody is refused from then on: in a chain
// everybody, in a bundle of authorities those that this one signed.
func FirstToExpire(certs []*x509.Certificate) *x509.Certificate {
	return slices.MinFunc(certs, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
}

// showLife has the metrics of the certificate that says until when those in use are good.
func (w *Watcher) showLife(name string, cert func() *x509.Certificate) error {
	labels := prometheus.Labels{"certificate": name}
	return errors.Join(
		w.Metrics.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "tokend_certificate_expiry_timestamp_seconds", ConstLabels: labels,
			Help: "When the first certificate expires of those in use, in Unix seconds; of a SPIFFE bundle, the last.",
		}, func() float64 { return float64(cert().NotAfter.Unix()) })),
		// Some live for years and some for an hour: what is soon, is a part of that.
		w.Metrics.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "tokend_certificate_not_before_timestamp_seconds", ConstLabels: labels,
			Help: "Since when that certificate is valid, in Unix seconds.",
		}, func() float64 { return float64(cert().NotBefore.Unix()) })),
	)
}

// tellReplaced leaves a line about a certificate that is used from now on in place of another.
func tellReplaced(log *slog.Logger, cert *x509.Certificate) {
	log.Info("certificate replaced", slog.Time("expires", cert.NotAfter))
	warn(log, cert)
}

// warn leaves a line about a certificate that has just been taken into use and will not be of use for long.
func warn(log *slog.Logger, cert *x509.Certificate) {
	// A tenth of its life, for those that live for hours and are replaced by a machine.
	margin := min(24*time.Hour, cert.NotAfter.Sub(cert.NotBefore)/10)
	switch left := time.Until(cert.NotAfter); {
	case left <= 0:
		log.Error("a certificate in use has expired", slog.Time("expires", cert.NotAfter))
	case left < margin:
		log.Warn("a certificate in use expires soon", slog.Time("expires", cert.NotAfter))
	}
}

// ReadCertificates returns the certificates of a PEM file as it is now, at least one.
func ReadCertificates(file string) ([]*x509.Certificate, error) {
	data, err := read(file)
	if err != nil {
		return nil, err
	}
	return parseCertificates(data)
}

// errCutShort is a file that ends, or goes on with something else, in the middle of a PEM block.
var errCutShort = errors.New("a PEM block in it is not whole")

// parseCertificates returns the certificates of a PEM file, at least one. What the standard library would leave out without
// a word is an error: of a file that is cut short in its second certificate, the first is not what its owner meant.
func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	blocks := 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		blocks++
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	switch {
	case blocks != bytes.Count(data, []byte("-----BEGIN ")):
		return nil, errCutShort
	case len(certs) == 0:
		return nil, errors.New("no certificate in it: give a file with PEM blocks of type CERTIFICATE")
	}
	return certs, nil
}
