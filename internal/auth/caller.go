package auth

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// The kinds of [Caller], as the audit record has them.
const (
	kindSPIFFE = "spiffe" // by the SPIFFE ID of a verified client certificate
	kindDNS    = "dns"    // by a DNS name of a verified client certificate
	kindOIDC   = "oidc"   // by a verified OIDC token
	kindAtlas  = "atlas"  // brings an Atlas JWT, which only Atlas can verify: the caller is not known

	kindCertificate = "certificate" // by the serial number and fingerprint of a verified client certificate that names no caller
)

// Caller is who is calling, as far as that has been verified. The zero Caller is unknown.
type Caller struct {
	// Kind is spiffe, dns, oidc, atlas, certificate or, for the zero Caller, empty.
	Kind string
	// Name is the SPIFFE ID, the DNS name in lower case, issuer#subject, or serial:HEX,sha256:HEX; empty for the kind atlas.
	Name string
}

// String returns the caller in the form that [Policy.Explain] reads, "unknown" for the zero Caller.
func (c Caller) String() string {
	switch c.Kind {
	case "":
		return "unknown"
	case kindSPIFFE:
		return c.Name
	case kindAtlas:
		return selectorAtlas
	}
	return c.Kind + ":" + c.Name
}

// parseCaller reads what String writes.
func parseCaller(text string) (Caller, error) {
	kind, name, _ := strings.Cut(text, ":")
	c := Caller{Kind: kind, Name: name}
	var err error
	switch {
	case text == selectorAtlas:
		return Caller{Kind: kindAtlas}, nil
	case kind == kindSPIFFE:
		c.Name, err = text, checkSPIFFEID(text)
	case kind == kindDNS:
		c.Name = strings.ToLower(name)
		err = checkDNSName(c.Name)
	case kind == kindOIDC:
		issuer, subject, _ := strings.Cut(name, "#")
		err = errors.Join(checkIssuer(issuer), checkSubject(subject))
	default:
		err = fmt.Errorf("give spiffe://TRUST-DOMAIN/PATH, dns:NAME, oidc:ISSUER#SUBJECT or %s", selectorAtlas)
	}
	if err != nil {
		return Caller{}, fmt.Errorf("%q is no caller: %w", text, err)
	}
	return c, nil
}

// ErrCertificateExpired is the error of a call over a connection that is still open although its client certificate, or the one of an
// authority above it, has expired.
var ErrCertificateExpired = errors.New("the caller's client certificate has expired")

// verifiedCallers returns all callers that the call's client certificate has been verified to stand for, and the one to put on record,
// which is zero if the call comes without a certificate. A certificate that names no caller is recorded by its serial number and
// fingerprint; no rule of a policy matches that.
//
// The certificates that the client merely sent, PeerCertificates, are not looked at: without a verified chain, anyone can make one.
// A connection outlives certificates, so their expiry is checked for each call.
func verifiedCallers(ctx context.Context) (callers []Caller, recorded Caller, err error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, Caller{}, nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 || len(info.State.VerifiedChains[0]) == 0 {
		return nil, Caller{}, nil
	}
	leaf := info.State.VerifiedChains[0][0]
	if callers = certificateCallers(leaf); len(callers) > 0 {
		recorded = callers[0]
	} else {
		recorded = Caller{Kind: kindCertificate, Name: fmt.Sprintf("serial:%x,sha256:%x", leaf.SerialNumber, sha256.Sum256(leaf.Raw))}
	}
	now := time.Now()
	expired := func(cert *x509.Certificate) bool { return now.After(cert.NotAfter) }
	for _, chain := range info.State.VerifiedChains {
		if !slices.ContainsFunc(chain, expired) {
			return callers, recorded, nil
		}
	}
	return nil, recorded, ErrCertificateExpired
}

// certificateCallers returns the callers that a verified certificate stands for: its SPIFFE ID if it has one, else its DNS names. The
// common name is never used (RFC 9525 section 2).
func certificateCallers(leaf *x509.Certificate) []Caller {
	// A certificate that may sign others is no caller's (X509-SVID section 5.2).
	if leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return nil
	}
	for _, uri := range leaf.URIs {
		if !strings.EqualFold(uri.Scheme, "spiffe") {
			continue
		}
		// It is meant as an X.509-SVID, so it has to be a valid one (X509-SVID sections 2 and 4.1): one URI, with a path. One that
		// is not names no caller, rather than its DNS names.
		id, err := x509svid.IDFromCert(leaf)
		if err != nil || id.Path() == "" {
			return nil
		}
		return []Caller{{Kind: kindSPIFFE, Name: id.String()}}
	}
	var callers []Caller
	for _, name := range leaf.DNSNames {
		if name = strings.ToLower(name); checkDNSName(name) == nil { // no wildcard: that is a set of names, not a caller
			callers = append(callers, Caller{Kind: kindDNS, Name: name})
		}
	}
	return callers
}
