package auth

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"text/tabwriter"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// The errors of a policy. The error that wraps one of them names the rule, for the log.
var (
	// ErrNotPermitted: no rule matches the caller, or the one that does not allow the method.
	ErrNotPermitted = errors.New("the policy does not permit the call")
	// ErrUnknownCaller: the caller is not identified, and no rule is for callers with an Atlas JWT.
	ErrUnknownCaller = errors.New("the caller is unknown")
)

// Policy says which caller may call which method, with which profile. It is immutable.
//
// The first rule whose selector matches decides, in the order of the file. A method that it does
// not allow is denied. A caller with a certificate and an OIDC token matches a rule if one of the
// two does.
//
// A selector matches the whole name. A * in it matches any number of characters, in three places
// and within its own part of the name:
//
//   - spiffe_id: in the path, without crossing a slash; never in the trust domain
//   - dns_san: in the leftmost label, without crossing a dot
//   - subject: anywhere, without crossing a slash or a colon
type Policy struct {
	name     string // of the file; empty if it is built in
	profiles []Profile
	issuers  []issuerConfig
	rules    []rule
	missing  error // of a call without a certificate and without a credential
}

// passThrough accepts every caller with an Atlas JWT, and leaves the rest to Atlas.
var passThrough = &Policy{rules: []rule{{kind: kindAny, profile: Passthrough}}, missing: noJWT}

// AnyCertificate returns a policy in which every caller with a verified client certificate may call
// all methods with one profile.
func AnyCertificate(profile Profile) *Policy {
	return &Policy{
		profiles: []Profile{profile},
		rules:    []rule{{kind: kindAnyCertificate, allow: methods, profile: profile.Name}},
		missing:  noCertificate,
	}
}

func (p *Policy) isBuiltIn() bool { return p.name == "" }

// Profile is an Atlas identity of the service.
type Profile struct {
	Name string
	// UserauthtokenFile is the absolute path of the file that holds the secret.
	UserauthtokenFile string
	// Line is its line in the policy file.
	Line int
}

// issuerConfig is an issuer whose OIDC tokens are accepted.
type issuerConfig struct {
	// URL is the iss of its tokens, and where its keys are found.
	URL string
	// Audience is the only aud that its tokens may have.
	Audience string
}

// methods are the service's methods, by the names they have in a policy.
var methods = func() []string {
	var names []string
	for _, method := range ephemeraltokenv1.EphemeralTokenService_ServiceDesc.Methods {
		names = append(names, method.MethodName)
	}
	return names
}()

// methodName returns the short name of a method from its short or full gRPC name.
func methodName(method string) string {
	return strings.TrimPrefix(method, "/"+ephemeraltokenv1.EphemeralTokenService_ServiceDesc.ServiceName+"/")
}

// The kinds of rules in built-in policies; other rules are of the kind of caller that they match.
const (
	kindAny            = "any"
	kindAnyCertificate = "any certificate"
)

// The keys of selectors.
const (
	selectorSPIFFE = "spiffe_id"
	selectorOIDC   = "oidc"
	selectorDNS    = "dns_san"
	selectorAtlas  = "atlas_jwt"
)

// rule is one entry of callers. It matches a caller of its kind whose name is the prefix followed
// by something that the pattern matches.
type rule struct {
	line    int
	kind    string
	prefix  string // literal: the trust domain, the issuer
	pattern string
	allow   []string // short names, sorted; nil allows all methods
	profile string
}

// separators are what a * does not match, besides the slash.
var separators = map[string]string{kindSPIFFE: "/", kindDNS: ".", kindOIDC: ":"}

func (r rule) matches(c Caller) bool {
	switch r.kind {
	case kindAny:
		return true
	case kindAnyCertificate:
		return c.Kind == kindSPIFFE || c.Kind == kindDNS || c.Kind == kindCertificate
	}
	return r.kind == c.Kind && strings.HasPrefix(c.Name, r.prefix) && matchGlob(r.pattern, c.Name[len(r.prefix):], separators[r.kind])
}

// covers reports whether r matches every caller that other matches. Only a * matches the * of
// another pattern, and both match the same characters.
func (r rule) covers(other rule) bool {
	return r.kind == other.kind && r.prefix == other.prefix && matchGlob(r.pattern, other.pattern, separators[r.kind])
}

// matchGlob is path.Match for patterns in which only * is special and does not match the separator.
func matchGlob(pattern, name, separator string) bool {
	if !strings.Contains(pattern, "*") {
		return pattern == name // may contain characters that are special to path.Match
	}
	for {
		p, restOfPattern, morePattern := strings.Cut(pattern, separator)
		n, restOfName, moreName := strings.Cut(name, separator)
		if ok, err := path.Match(p, n); !ok || err != nil || morePattern != moreName {
			return false
		}
		if !morePattern {
			return true
		}
		pattern, name = restOfPattern, restOfName
	}
}

// selector returns the selector for a listing.
func (r rule) selector() string {
	switch r.kind {
	case kindSPIFFE:
		return selectorSPIFFE + " " + r.prefix + r.pattern
	case kindDNS:
		return selectorDNS + " " + r.pattern
	case kindOIDC:
		return selectorOIDC + " " + r.prefix + r.pattern
	}
	return selectorAtlas
}

func (r rule) may() string { return strings.Join(r.allow, ", ") }

func (r rule) as() string {
	if r.profile == Passthrough {
		return "with the caller's own Atlas JWT"
	}
	return "as profile " + r.profile
}

// find returns the index of the first rule that matches and the identity that it matches, or -1.
func (p *Policy) find(callers []Caller) (int, Caller) {
	for i, r := range p.rules {
		for _, c := range callers {
			if r.matches(c) {
				return i, c
			}
		}
	}
	return -1, Caller{}
}

// decide returns the profile of a call by a caller with these verified identities, and the identity
// that the rule matches. The method is the short or the full gRPC name.
func (p *Policy) decide(callers []Caller, method string) (caller Caller, profile string, err error) {
	i, caller := p.find(callers)
	if i < 0 {
		caller, err = p.unmatched(callers)
		return caller, "", err
	}
	r := p.rules[i]
	if r.allow != nil && !slices.Contains(r.allow, methodName(method)) {
		return caller, "", fmt.Errorf("%w: %s:%d (rule %d) allows %s only", ErrNotPermitted, p.name, r.line, i+1, r.may())
	}
	return caller, r.profile, nil
}

// unmatched returns the error of a caller that no rule matches, and its identity if it has one.
func (p *Policy) unmatched(callers []Caller) (Caller, error) {
	err := p.missing
	for _, c := range callers {
		switch c.Kind {
		case kindAtlas:
			err = ErrUnknownCaller
		case kindCertificate:
			err = fmt.Errorf("%w, and its client certificate names no caller: it has no DNS name, or an invalid SPIFFE ID", ErrMissing)
		default:
			return c, fmt.Errorf("%w: no rule in %s matches %s", ErrNotPermitted, p.name, c)
		}
	}
	return Caller{}, err
}

// Explain says in words which rule a caller matches. The caller is a SPIFFE ID, dns:NAME,
// oidc:ISSUER#SUBJECT or atlas_jwt. It also reports whether there is such a rule.
func (p *Policy) Explain(caller string) (text string, matches bool, err error) {
	c, err := parseCaller(caller)
	if err != nil {
		return "", false, err
	}
	text, matches = p.explain(c)
	return text, matches, nil
}

func (p *Policy) explain(c Caller) (text string, matches bool) {
	i, _ := p.find([]Caller{c})
	if i < 0 {
		return fmt.Sprintf("%s matches none of the %d rules in %s: it may do nothing", c, len(p.rules), p.name), false
	}
	r := p.rules[i]
	return fmt.Sprintf("%s matches rule %d (%s:%d), %s: it may call %s, %s", c, i+1, p.name, r.line, r.selector(), r.may(), r.as()), true
}

// Profiles returns the profiles in the order of the file.
func (p *Policy) Profiles() []Profile { return slices.Clone(p.profiles) }

// Issuers returns the URLs of the OIDC issuers in the order of the file.
func (p *Policy) Issuers() []string {
	urls := make([]string, 0, len(p.issuers))
	for _, issuer := range p.issuers {
		urls = append(urls, issuer.URL)
	}
	return urls
}

// NeedsCertificates reports whether a rule is for callers with client certificates.
func (p *Policy) NeedsCertificates() bool { return p.hasRule(kindSPIFFE, kindDNS) }

// NeedsDNSNames reports whether a rule is for DNS names in client certificates.
func (p *Policy) NeedsDNSNames() bool { return p.hasRule(kindDNS) }

// hasRule reports whether a rule is of one of the kinds.
func (p *Policy) hasRule(kinds ...string) bool {
	return slices.ContainsFunc(p.rules, func(r rule) bool { return slices.Contains(kinds, r.kind) })
}

// usesPassthrough reports whether a rule is for callers with their own Atlas JWT.
func (p *Policy) usesPassthrough() bool {
	return slices.ContainsFunc(p.rules, func(r rule) bool { return r.profile == Passthrough })
}

// String lists the policy for an operator.
func (p *Policy) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "policy %s: the first rule whose selector matches decides; a caller that matches none is denied\n", p.name)
	for i, r := range p.rules {
		fmt.Fprintf(w, "rule %d\tline %d\t%s\tmay call %s\t%s\n", i+1, r.line, r.selector(), r.may(), r.as())
	}
	_ = w.Flush() // aligns each block by itself; a strings.Builder does not fail
	for _, profile := range p.profiles {
		fmt.Fprintf(w, "profile %s\tline %d\tuserauthtoken_file %s\n", profile.Name, profile.Line, profile.UserauthtokenFile)
	}
	_ = w.Flush()
	for _, issuer := range p.issuers {
		fmt.Fprintf(w, "issuer %s\taudience %s\n", issuer.URL, issuer.Audience)
	}
	_ = w.Flush()
	return b.String()
}
