package doctor

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

// certificateUse is the use of certificates.
type certificateUse int

const (
	noCertificate certificateUse = iota
	forTrust                     // authorities to trust besides the system's
	forCallers                   // authorities, and there are no others
	forServer                    // a server's, with intermediates
	forClient                    // a client's, with intermediates
)

// expiresSoon leaves time to renew a certificate by hand. One that lives for days is renewed
// automatically.
const expiresSoon = 14 * 24 * time.Hour

// expiryFinding returns a problem with the validity of a certificate, or nil.
func expiryFinding(cert *x509.Certificate, now time.Time) *Finding {
	const remedy = "Have it renewed, and replace the file; tokend picks it up."
	margin := min(expiresSoon, cert.NotAfter.Sub(cert.NotBefore)/10)
	switch left := cert.NotAfter.Sub(now); {
	case left <= 0:
		return new(bad(fmt.Sprintf("%s expired at %s", nameOf(cert), utc(cert.NotAfter)), remedy))
	case now.Before(cert.NotBefore):
		return new(bad(fmt.Sprintf("%s is not valid before %s", nameOf(cert), utc(cert.NotBefore)), "Check this machine's clock, or have another one issued."))
	case left < margin:
		return new(doubtful(fmt.Sprintf("%s expires soon, at %s", nameOf(cert), utc(cert.NotAfter)), remedy))
	}
	return nil
}

// certificatesFinding looks at the certificates of a file. Opening the settings has checked the
// key, and that the first is for servers.
func certificatesFinding(use certificateUse, certs []*x509.Certificate, now time.Time) Finding {
	if use == forTrust || use == forCallers {
		return authoritiesFinding(use, certs, now)
	}
	for _, cert := range certs {
		if f := expiryFinding(cert, now); f != nil {
			return *f
		}
	}
	if f := chainFinding(certs); f != nil {
		return *f
	}
	if f := unfitFinding(use, certs[0]); f != nil {
		return *f
	}
	return good("%s, intermediates: %d, valid until %s", nameOf(certs[0]), len(certs)-1, utc(reload.FirstToExpire(certs).NotAfter))
}

// authoritiesFinding accepts expired authorities as long as there are others.
func authoritiesFinding(use certificateUse, certs []*x509.Certificate, now time.Time) Finding {
	var worst *Finding
	usable := false
	for _, cert := range certs {
		f := expiryFinding(cert, now)
		usable = usable || f == nil || f.Status == Doubted
		if f != nil && (worst == nil || f.Status == Failed) {
			worst = f
		}
	}
	switch {
	case worst == nil:
		return good("authorities: %d, valid until %s at least", len(certs), utc(reload.FirstToExpire(certs).NotAfter))
	case usable || use == forTrust:
		worst.Status = Doubted
	}
	return *worst
}

// chainFinding returns a problem with the order of the certificates (RFC 5246 §7.4.2: each
// certifies the one before).
func chainFinding(certs []*x509.Certificate) *Finding {
	for i := range len(certs) - 1 {
		if certs[i].CheckSignatureFrom(certs[i+1]) != nil {
			return new(doubtful(fmt.Sprintf("certificate %d (%s) has not signed the one before, %s: peers may not find a path to an authority", i+2, nameOf(certs[i+1]), nameOf(certs[i])),
				"Put the certificate first, then the one that signed it, and so on; leave out what is not part of the chain."))
		}
	}
	return nil
}

// unfitFinding returns why peers would refuse a certificate, or nil.
func unfitFinding(use certificateUse, cert *x509.Certificate) *Finding {
	unlimited := slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageAny) || len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) == 0
	switch {
	case use == forServer && len(cert.DNSNames)+len(cert.IPAddresses) == 0:
		return new(doubtful(nameOf(cert)+" names no host or address as subject alternative name: clients refuse it", "Have one issued with the names that clients use."))
	case use == forClient && !unlimited && !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth):
		return new(doubtful(nameOf(cert)+" is not for clients: its extended key usage lacks clientAuth", "Have one issued with clientAuth."))
	}
	return nil
}

// nameOf returns the subject, or else the names.
func nameOf(cert *x509.Certificate) string {
	if name := cert.Subject.String(); name != "" {
		return name
	}
	names := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 {
		return "the certificate"
	}
	return "the certificate of " + strings.Join(names, ", ")
}

func utc(t time.Time) string { return t.UTC().Format(time.RFC3339) }
