package auth

import (
	"cmp"
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

// The kinds of a [Caller], as in the audit record.
const (
	kindSPIFFE = "spiffe" // by the SPIFFE ID of a verified client certificate
	kindDNS    = "dns"    // by a DNS name of a verified client certificate
	kindOIDC   = "oidc"   // by a verified OIDC token
	kindAtlas  = "atlas"  // has an Atlas JWT, which only Atlas can verify: the caller is unknown

	// kindCertificate is a verified client certificate that names no caller, by its serial number
	// and fingerprint.
	kindCertificate = "certificate"
)

// Caller is the verified identity of a caller. The zero Caller is unknown.
type Caller struct {
	// Kind is spiffe, dns, oidc, atlas, certificate or, for the zero Caller, empty.
	Kind string
	// Name is the SPIFFE ID, the DNS name in lower case, issuer#subject, or serial:HEX,sha256:HEX.
	// It is empty for the kind atlas.
	Name string
}

// String returns the form that [Policy.Explain] reads, or "unknown" for the zero Caller.
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

// parseCaller is the inverse of String.
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
		err = cmp.Or(checkIssuer(issuer), checkSubject(subject))
	default:
		err = fmt.Errorf("give spiffe://TRUST-DOMAIN/PATH, dns:NAME, oidc:ISSUER#SUBJECT or %s", selectorAtlas)
	}
	if err != nil {
		return Caller{}, fmt.Errorf("%q is not a caller: %w", text, err)
	}
	return c, nil
}

// ErrCertificateExpired is the error of a call over a connection whose client certificate, or that
// of an authority above it, has expired since the handshake.
var ErrCertificateExpired = errors.New("the caller's client certificate has expired")

// certificateCallers returns the callers that the verified client certificate of a call identifies:
// its SPIFFE ID, or its DNS names if it has none, or its serial number and fingerprint, which no
// rule of a policy file matches. The first is the one to record. There is none without a
// certificate.
//
// It ignores PeerCertificates, which are not verified. It checks the expiry for each call because a
// connection may outlive a certificate.
func certificateCallers(ctx context.Context) ([]Caller, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 || len(info.State.VerifiedChains[0]) == 0 {
		return nil, nil
	}
	leaf := info.State.VerifiedChains[0][0]
	callers := namesIn(leaf)
	if len(callers) == 0 {
		callers = []Caller{{Kind: kindCertificate, Name: fmt.Sprintf("serial:%x,sha256:%x", leaf.SerialNumber, sha256.Sum256(leaf.Raw))}}
	}
	now := time.Now()
	expired := func(cert *x509.Certificate) bool { return now.After(cert.NotAfter) }
	for _, chain := range info.State.VerifiedChains {
		if !slices.ContainsFunc(chain, expired) {
			return callers, nil
		}
	}
	return callers, ErrCertificateExpired
}

// namesIn returns the callers that a verified certificate names. The common name is never used (RFC
// 9525 section 2).
func namesIn(leaf *x509.Certificate) []Caller {
	// A certificate that may sign others names no caller (X509-SVID section 5.2).
	if leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return nil
	}
	for _, uri := range leaf.URIs {
		if !strings.EqualFold(uri.Scheme, "spiffe") {
			continue
		}
		// An X.509-SVID must have exactly one URI, with a path (X509-SVID sections 2 and 4.1). With
		// an invalid one, the DNS names do not count either.
		id, err := x509svid.IDFromCert(leaf)
		if err != nil || id.Path() == "" {
			return nil
		}
		return []Caller{{Kind: kindSPIFFE, Name: id.String()}}
	}
	var callers []Caller
	for _, name := range leaf.DNSNames {
		if name = strings.ToLower(name); checkDNSName(name) == nil { // a wildcard is a set of names, not a caller
			callers = append(callers, Caller{Kind: kindDNS, Name: name})
		}
	}
	return callers
}
