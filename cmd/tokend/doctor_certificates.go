package main

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

// certificateUse is what certificates are for.
type certificateUse int

const (
	forTrust   certificateUse = iota // authorities to trust beside the system's
	forCallers                       // authorities, and there are no others
	forServer                        // one, and those that vouch for it
	forClient                        // as well
)

// Certificates that people renew are renewed by somebody who has to be told in time; those that live for days, by a machine.
const expiresSoon = 14 * 24 * time.Hour

// findExpiry is what is wrong with how long a certificate is valid, nil if nothing is.
func findExpiry(cert *x509.Certificate, now time.Time) *finding {
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

// findInCertificates looks at those of a file. Whether the key fits, and whether the first is for a server, serve has seen.
func findInCertificates(use certificateUse, certs []*x509.Certificate, now time.Time) finding {
	if use == forTrust || use == forCallers {
		return findInAuthorities(use, certs, now)
	}
	for _, cert := range certs {
		if f := findExpiry(cert, now); f != nil {
			return *f
		}
	}
	if f := findInChain(certs); f != nil {
		return *f
	}
	if f := findUnfit(use, certs[0]); f != nil {
		return *f
	}
	return good("%s, intermediates: %d, valid until %s", nameOf(certs[0]), len(certs)-1, utc(reload.FirstToExpire(certs).NotAfter))
}

// findInAuthorities is less strict: one that has expired is of no use, and does no harm as long as there are others.
func findInAuthorities(use certificateUse, certs []*x509.Certificate, now time.Time) finding {
	var worst *finding
	usable := false
	for _, cert := range certs {
		f := findExpiry(cert, now)
		usable = usable || f == nil || f.Status == doubted
		if f != nil && (worst == nil || f.Status == failed) {
			worst = f
		}
	}
	switch {
	case worst == nil:
		return good("authorities: %d, valid until %s at least", len(certs), utc(reload.FirstToExpire(certs).NotAfter))
	case usable || use == forTrust:
		worst.Status = doubted
	}
	return *worst
}

// findInChain is what is wrong with the order of the certificates (RFC 5246 §7.4.2: each vouches for the one before).
func findInChain(certs []*x509.Certificate) *finding {
	for i := range len(certs) - 1 {
		if certs[i].CheckSignatureFrom(certs[i+1]) != nil {
			return new(doubtful(fmt.Sprintf("certificate %d (%s) has not signed the one before, %s: peers may not find the way to an authority", i+2, nameOf(certs[i+1]), nameOf(certs[i])),
				"Put the certificate first, then the one that signed it, and so on; leave out what is not of the chain."))
		}
	}
	return nil
}

// findUnfit is what a peer would not like about a certificate.
func findUnfit(use certificateUse, cert *x509.Certificate) *finding {
	unlimited := slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageAny) || len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) == 0
	switch {
	case use == forServer && len(cert.DNSNames)+len(cert.IPAddresses) == 0:
		return new(doubtful(nameOf(cert)+" names no host or address as subject alternative name: clients refuse it", "Have one issued with the names that callers use."))
	case use == forClient && !unlimited && !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth):
		return new(doubtful(nameOf(cert)+" is not for clients: its extended key usage lacks clientAuth", "Have one issued with clientAuth."))
	}
	return nil
}

// nameOf is the subject, or else the names.
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
