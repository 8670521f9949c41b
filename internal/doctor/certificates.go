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

// expiryFinding returns the finding about a certificate's validity.
func expiryFinding(cert *x509.Certificate, now time.Time) Finding {
	const remedy = "Have it renewed, and replace the file; tokend picks it up."
	margin := min(expiresSoon, cert.NotAfter.Sub(cert.NotBefore)/10)
	switch left := cert.NotAfter.Sub(now); {
	case left <= 0:
		return bad(fmt.Sprintf("%s expired at %s", nameOf(cert), utc(cert.NotAfter)), remedy)
	case now.Before(cert.NotBefore):
		return bad(fmt.Sprintf("%s is not valid before %s", nameOf(cert), utc(cert.NotBefore)), "Check this machine's clock, or have another one issued.")
	case left < margin:
		return doubtful(fmt.Sprintf("%s expires soon, at %s", nameOf(cert), utc(cert.NotAfter)), remedy)
	}
	return good("%s, valid until %s", nameOf(cert), utc(cert.NotAfter))
}

// certificatesFinding returns the finding about the certificates of a file. Opening the settings
// has checked the key, and that the first is for servers.
func certificatesFinding(use certificateUse, certs []*x509.Certificate, now time.Time) Finding {
	if use == forTrust || use == forCallers {
		return authoritiesFinding(use, certs, now)
	}
	for _, cert := range certs {
		if f := expiryFinding(cert, now); f.Status != Passed {
			return f
		}
	}
	for i, cert := range certs[:len(certs)-1] { // each certifies the one before (RFC 5246, section 7.4.2)
		if next := certs[i+1]; cert.CheckSignatureFrom(next) != nil {
			return doubtful(fmt.Sprintf("certificate %d (%s) has not signed the one before, %s: peers may not find a path to an authority", i+2, nameOf(next), nameOf(cert)),
				"Put the certificate first, then the one that signed it, and so on; leave out what is not part of the chain.")
		}
	}
	leaf := certs[0]
	unlimited := slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny) || len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) == 0
	switch {
	case use == forServer && len(leaf.DNSNames)+len(leaf.IPAddresses) == 0:
		return doubtful(nameOf(leaf)+" names no host or address as subject alternative name: clients refuse it", "Have one issued with the names that clients use.")
	case use == forClient && !unlimited && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth):
		return doubtful(nameOf(leaf)+" is not for clients: its extended key usage lacks clientAuth", "Have one issued with clientAuth.")
	}
	return good("%s, intermediates: %d, valid until %s", nameOf(leaf), len(certs)-1, utc(reload.FirstToExpire(certs).NotAfter))
}

// authoritiesFinding returns the worst finding about the validity of authorities. An expired one is
// a warning as long as there are others.
func authoritiesFinding(use certificateUse, certs []*x509.Certificate, now time.Time) Finding {
	worst := good("authorities: %d, valid until %s at least", len(certs), utc(reload.FirstToExpire(certs).NotAfter))
	usable := use == forTrust // the system's
	for _, cert := range certs {
		f := expiryFinding(cert, now)
		usable = usable || f.Status != Failed
		if f.Status == Failed || f.Status == Doubted && worst.Status == Passed {
			worst = f
		}
	}
	if worst.Status == Failed && usable {
		worst.Status = Doubted
	}
	return worst
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
