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
)

// Certificate watches the PEM file of a certificate, with any intermediates, and the file of its
// private key. The metrics and the log call it name, such as "server". check, if set, reports what
// else is wrong with a certificate for its use; onChange, if set, is called after each change.
//
// An expired certificate is used if there is none better: it is replaced while the program runs,
// and a program that refused to start would make matters worse. It does not replace a valid one.
func (w *Watcher) Certificate(name, certFile, keyFile string, check func(*x509.Certificate) error, onChange func()) (func() tls.Certificate, error) {
	return watchPEM(w, name, []string{certFile, keyFile}, FirstToExpire, onChange, func(certs []*x509.Certificate, contents [][]byte) (tls.Certificate, error) {
		pair, err := tls.X509KeyPair(contents[0], contents[1])
		switch leaf := certs[0]; {
		case err != nil && isEncrypted(contents[1]):
			return pair, errors.New("the key is encrypted: store it without a passphrase (openssl pkey -in … -out …)")
		case err != nil:
			return pair, err
		case time.Now().Before(leaf.NotBefore):
			return pair, fmt.Errorf("the certificate is not valid before %s", leaf.NotBefore.UTC().Format(time.RFC3339))
		case check != nil:
			return pair, check(leaf)
		}
		return pair, nil
	})
}

// isEncrypted reports whether a PEM file has a private key that needs a passphrase.
func isEncrypted(data []byte) bool {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["Proc-Type"] == "4,ENCRYPTED" {
			return true
		}
	}
	return false
}

// ForServers reports a certificate that clients do not accept from a server. It is a check for
// [Watcher.Certificate].
func ForServers(cert *x509.Certificate) error {
	named := slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageAny)
	if named || len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) == 0 { // none allows all (RFC 5280 §4.2.1.12)
		return nil
	}
	return errors.New("the certificate is not for servers: its extended key usage lacks serverAuth")
}

// Authorities watches a PEM file of certificate authorities, which are added to those that base
// returns: x509.SystemCertPool, or nil for none. With nil each certificate has to be an authority;
// beside the system's, the file may also have the certificate of one server.
func (w *Watcher) Authorities(name, file string, base func() (*x509.CertPool, error), onChange func()) (func() *x509.CertPool, error) {
	return watchPEM(w, name, []string{file}, nextToExpire, onChange, func(certs []*x509.Certificate, _ [][]byte) (*x509.CertPool, error) {
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

// isAuthority reports whether crypto/x509 accepts signatures of cert at all.
func isAuthority(cert *x509.Certificate) bool {
	return cert.IsCA || cert.Version < 3 && !cert.BasicConstraintsValid
}

// FirstToExpire returns the certificate of certs, at least one, that expires first. A chain is not
// valid any more from then on.
func FirstToExpire(certs []*x509.Certificate) *x509.Certificate {
	return slices.MinFunc(certs, compareExpiry)
}

// LastToExpire returns the certificate of certs, at least one, that expires last.
func LastToExpire(certs []*x509.Certificate) *x509.Certificate {
	return slices.MaxFunc(certs, compareExpiry)
}

func compareExpiry(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) }

// nextToExpire returns the first certificate of a bundle to expire of those that have not expired,
// or the last if all have. Old authorities are often left in a bundle.
func nextToExpire(certs []*x509.Certificate) *x509.Certificate {
	now := time.Now()
	valid := slices.DeleteFunc(slices.Clone(certs), func(c *x509.Certificate) bool { return now.After(c.NotAfter) })
	if len(valid) == 0 {
		return LastToExpire(certs)
	}
	return FirstToExpire(valid)
}

// pemFile is the value made from a PEM file.
type pemFile[T any] struct {
	made  T
	certs []*x509.Certificate
}

// watchPEM watches files of which the first has certificates in it. decisive returns the one whose
// expiry matters now.
func watchPEM[T any](
	w *Watcher, name string, paths []string, decisive func([]*x509.Certificate) *x509.Certificate,
	onChange func(), parse func([]*x509.Certificate, [][]byte) (T, error),
) (func() T, error) {
	log := w.Logger.With(slog.String("certificate", name), slog.String("file", paths[0]))
	certificate := func(v pemFile[T]) *x509.Certificate { return decisive(v.certs) }
	get, err := Watch(w, Files[pemFile[T]]{
		Paths: paths, What: "certificate", Name: name, Logger: log, certificate: certificate,
		Parse: func(contents [][]byte) (pemFile[T], error) {
			certs, err := parseCertificates(contents[0])
			var made T
			if err == nil {
				made, err = parse(certs, contents)
			}
			if err != nil {
				return pemFile[T]{}, fmt.Errorf("%s: %w", strings.Join(paths, " with "), err)
			}
			return pemFile[T]{made, certs}, nil
		},
		OnChange: func(v pemFile[T]) {
			if onChange != nil {
				onChange()
			}
			LogReplaced(log, certificate(v))
		},
	})
	if err != nil {
		return nil, err
	}
	LogExpiry(log, certificate(get()))
	return func() T { return get().made }, nil
}

// CheckReplacement reports an expired certificate that would replace a valid one.
func CheckReplacement(next, inUse *x509.Certificate) error {
	if now := time.Now(); now.After(next.NotAfter) && !now.After(inUse.NotAfter) {
		return fmt.Errorf("the certificate expired at %s, and the one in use is valid", next.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// LogReplaced logs that a certificate is in use from now on in place of another.
func LogReplaced(log *slog.Logger, cert *x509.Certificate) {
	log.Info("certificate replaced", slog.Time("expires", cert.NotAfter))
	LogExpiry(log, cert)
}

// LogExpiry logs that a certificate which has just been taken into use expires soon.
func LogExpiry(log *slog.Logger, cert *x509.Certificate) {
	// A tenth of its life, for those that live for hours and are replaced by a machine.
	margin := min(24*time.Hour, cert.NotAfter.Sub(cert.NotBefore)/10)
	switch left := time.Until(cert.NotAfter); {
	case left <= 0:
		log.Error("a certificate in use has expired", slog.Time("expires", cert.NotAfter))
	case left < margin:
		log.Warn("a certificate in use expires soon", slog.Time("expires", cert.NotAfter))
	}
}

// ReadCertificates returns the certificates of a PEM file, at least one.
func ReadCertificates(file string) ([]*x509.Certificate, error) {
	data, err := Read(file)
	if err != nil {
		return nil, err
	}
	return parseCertificates(data)
}

// errCutShort reports a file with the start of a PEM block and not its end.
var errCutShort = errors.New("a PEM block in it is not whole")

// parseCertificates returns the certificates of a PEM file, at least one. What the standard library
// skips is an error: a file that is cut short in its second certificate is not used for its first.
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
