package auth

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// The kinds of [Caller], as the audit record has them.
const (
	kindSPIFFE = "spiffe" // by the SPIFFE ID of a verified client certificate
	kindDNS    = "dns"    // by a DNS name of a verified client certificate
	kindOIDC   = "oidc"   // by a verified OIDC token
	kindAtlas  = "atlas"  // brings an Atlas JWT, which only Atlas can verify: who it is, is not known
)

// Caller is who is calling, as far as that has been verified. The zero Caller is nobody that is known.
type Caller struct {
	// Kind is spiffe, dns, oidc, atlas or, for the zero Caller, empty.
	Kind string
	// Name is the SPIFFE ID, the DNS name in lower case, or issuer#subject; empty for the kind atlas.
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

// verifiedLeaf returns the certificate with which the call's client has authenticated itself, nil if there is none. What
// the client merely sent, PeerCertificates, is not looked at: without a verified chain anybody can have made it.
func verifiedLeaf(ctx context.Context) *x509.Certificate {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 || len(info.State.VerifiedChains[0]) == 0 {
		return nil
	}
	return info.State.VerifiedChains[0][0]
}

// appendCertificateCallers appends the callers that a verified certificate stands for: its SPIFFE ID if it has one, else
// its DNS names. The common name is never used (RFC 9525 §2).
func appendCertificateCallers(to []Caller, leaf *x509.Certificate) []Caller {
	// Whoever may sign certificates is no caller (X509-SVID §5.2), and what such a certificate names is for others.
	if leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return to
	}
	for _, uri := range leaf.URIs {
		if !strings.EqualFold(uri.Scheme, "spiffe") {
			continue
		}
		// It means to be an X.509-SVID, so it has to be a valid one (X509-SVID §2, §4.1): one URI, with a path. One that
		// is not, stands for nobody, rather than for its DNS names.
		id, err := x509svid.IDFromCert(leaf)
		if err != nil || id.Path() == "" {
			return to
		}
		return append(to, Caller{Kind: kindSPIFFE, Name: id.String()})
	}
	for _, name := range leaf.DNSNames {
		if name = strings.ToLower(name); checkDNSName(name) == nil { // no wildcard: that is a set of names, not a caller
			to = append(to, Caller{Kind: kindDNS, Name: name})
		}
	}
	return to
}
