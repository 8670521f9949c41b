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
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// The kinds of a [Caller], as in the audit record.
const (
	kindSPIFFE = "spiffe" // by the SPIFFE ID of a verified client certificate
	kindDNS    = "dns"    // by a DNS name of a verified client certificate
	kindOIDC   = "oidc"   // by a verified OIDC token
	kindAtlas  = "atlas"  // has an Atlas JWT, which only Atlas can verify: the caller is unknown

	// kindCertificate is a verified client certificate that names no caller, by its serial number and
	// fingerprint.
	kindCertificate = "certificate"
)

// Caller is the verified identity of a caller. The zero Caller is unknown.
type Caller struct {
	// Kind is spiffe, dns, oidc, atlas, certificate or, for the zero Caller, empty.
	Kind string
	// Name is the SPIFFE ID, the DNS name in lower case, issuer#subject, or serial:HEX,sha256:HEX. It
	// is empty for the kind atlas.
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
		// An X.509-SVID must have exactly one URI, with a path (X509-SVID sections 2 and 4.1). With an
		// invalid one, the DNS names do not count either.
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

// Header is the metadata key and HTTP header in which a caller brings its credential.
const Header = "authorization"

// SecondHeader is what clients of a gRPC gateway may send instead. It is never read as a
// credential, but next to a real one it makes the call ambiguous.
const SecondHeader = "grpc-metadata-authorization"

// callCredentials returns the authorization values of a call.
func callCredentials(ctx context.Context) []string {
	values := metadata.ValueFromIncomingContext(ctx, Header)
	if len(values) == 0 {
		return nil
	}
	return append(values, metadata.ValueFromIncomingContext(ctx, SecondHeader)...)
}

// The errors of a call's credential. None of them quotes it.
var (
	// ErrMissing: the call has nothing that identifies its caller, or no Atlas JWT to pass on.
	ErrMissing = errors.New("the call has no authorization value")
	// ErrMalformed: the authorization value cannot be parsed.
	ErrMalformed = errors.New("the authorization value is not `JWT <jwt>` or `Bearer <jwt>`")
	// ErrAmbiguous: the call has several authorization values, or an Atlas JWT although the caller is
	// mapped to a profile.
	ErrAmbiguous = errors.New("the call has more than one credential")
)

// maxCredential limits an authorization value, in bytes. Atlas's JWTs have about 300.
const maxCredential = 8 << 10

// parseCredential returns the JWT in the authorization values of a call: exactly one value, `JWT
// <jwt>` or `Bearer <jwt>`, in which the scheme's case does not matter (RFC 9110 section 11.1). It
// checks only the form of the JWT, so that CR, LF, NUL and non-ASCII are never passed on. A Bearer
// token may be an OIDC token instead of an Atlas JWT.
func parseCredential(values []string) (jwt atlas.JWT, bearer bool, err error) {
	switch len(values) {
	case 0:
		return "", false, ErrMissing
	case 1:
	default:
		return "", false, ErrAmbiguous
	}
	value := values[0]
	if value == "" {
		return "", false, ErrMissing
	}
	if len(value) > maxCredential {
		return "", false, ErrMalformed
	}
	scheme, rest, _ := strings.Cut(value, " ")
	bearer = strings.EqualFold(scheme, "Bearer")
	rest = strings.TrimLeft(rest, " ") // RFC 9110 section 11.4 allows several
	if !isScheme(scheme) || !isCompactJWS(rest) {
		return "", false, mistakeIn(value)
	}
	return atlas.JWT(rest), bearer, nil
}

// isCompactJWS reports whether s looks like a signed JWT: three non-empty base64url parts (RFC 7515
// section 7.1).
func isCompactJWS(s string) bool {
	dots := 0
	for i := range len(s) {
		switch c := s[i]; {
		case c == '.' && i > 0 && s[i-1] != '.':
			dots++
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return dots == 2 && s[len(s)-1] != '.'
}

// Mistake is a common mistake with a credential. It wraps ErrMalformed or ErrMissing.
type Mistake struct {
	kind error
	// Advice is for the caller. It is a fixed text and quotes nothing.
	Advice string
}

func (m *Mistake) Error() string { return m.Advice }
func (m *Mistake) Unwrap() error { return m.kind }

// The missing credential, where only some would be accepted.
var (
	noJWT         = &Mistake{ErrMissing, "no credential: send `authorization: JWT <jwt>` with an Atlas JWT"}
	noCertificate = &Mistake{ErrMissing, "no credential: show a client certificate that this service trusts"}
	noToken       = &Mistake{ErrMissing, "no credential: send `authorization: Bearer <token>` with a token that this service trusts, or `authorization: JWT <jwt>` with an Atlas JWT"}
)

// The common mistakes in an authorization value.
var (
	otherScheme = &Mistake{ErrMalformed, "the authorization scheme is one that Atlas JWTs do not have: send `JWT <jwt>` or `Bearer <jwt>`"}
	noScheme    = &Mistake{ErrMalformed, "the authorization value has a JWT without a scheme: put `JWT ` in front of it"}
	twoSchemes  = &Mistake{ErrMalformed, "the authorization value has two schemes: send `JWT <jwt>` or `Bearer <jwt>`"}
	onlyScheme  = &Mistake{ErrMalformed, "the authorization value has a scheme and no JWT: check that the variable with the JWT is set"}
	unexpanded  = &Mistake{ErrMalformed, "the authorization value has a variable or placeholder in place of the JWT: check the quotes in the shell, or the template"}
	quoted      = &Mistake{ErrMalformed, "the authorization value has quotes: send `JWT <jwt>` without them"}
)

// otherSchemes are well-known authorization schemes that are not accepted.
var otherSchemes = []string{"Basic", "Digest", "Token", "Negotiate", "NTLM", "DPoP", "ApiKey", "OAuth", "AWS4-HMAC-SHA256"}

// mistakeIn returns the common mistake in a malformed authorization value, or ErrMalformed.
func mistakeIn(value string) error {
	scheme, rest, _ := strings.Cut(value, " ")
	rest = strings.TrimLeft(rest, " ")
	second, _, _ := strings.Cut(rest, " ")
	switch {
	case slices.ContainsFunc(otherSchemes, func(s string) bool { return strings.EqualFold(s, scheme) }):
		return otherScheme
	case strings.ContainsAny(value, "${}<>%"):
		return unexpanded
	case strings.ContainsAny(value, `"'`):
		return quoted
	case isCompactJWS(value):
		return noScheme
	case isScheme(scheme) && rest == "":
		return onlyScheme
	case isScheme(scheme) && isScheme(second):
		return twoSchemes
	}
	return ErrMalformed
}

// isScheme reports whether s is an accepted scheme, in any case.
func isScheme(s string) bool { return strings.EqualFold(s, "JWT") || strings.EqualFold(s, "Bearer") }
