package auth

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// Why a policy lets a caller do nothing. The error that wraps one of these says which rule it was, for the log.
var (
	// ErrNotPermitted: the caller is known, but no rule matches, or the one that does has not allowed the method.
	ErrNotPermitted = errors.New("the policy does not permit the call")
	// ErrUnknownCaller: nothing says who is calling. An Atlas JWT alone does not, unless a rule is about those.
	ErrUnknownCaller = errors.New("the caller is not known")
)

// Policy says which caller may call which method, as whom. It does not change; all its methods may be called from anywhere.
//
// The first rule whose selector matches decides, in the order of the file. What that rule does not allow is denied: no later
// rule is asked. If several identities of a caller are verified, by certificate and by OIDC token, a rule matches if it
// matches one of them.
//
// In a selector * stands for any number of characters, also none, and a selector has to match from the first character
// to the last. It can be used in three places, and never goes beyond its own part of the name:
//
//   - spiffe_id: in the path, without crossing a slash; never in the trust domain
//   - dns_san: in the leftmost label, without crossing a dot
//   - subject: anywhere, without crossing a slash or a colon
type Policy struct {
	name     string
	profiles []Profile
	issuers  []Issuer
	rules    []rule

	exact map[Caller]int    // index of the rule that names this one caller
	globs []int             // indices of the rules with a *, ascending
	files map[string]string // UserauthtokenFile, by profile
}

// Profile is an Atlas identity of the service.
type Profile struct {
	// Name is what rules call it.
	Name string
	// UserauthtokenFile is the absolute path of the file that holds the secret.
	UserauthtokenFile string
	// Line is where in the policy file it is.
	Line int
}

// Issuer is somebody whose OIDC tokens are accepted.
type Issuer struct {
	// URL is what its tokens have as iss, and where its keys are found.
	URL string
	// Audience is what they must have as aud, and nothing else beside it.
	Audience string
}

// Decision is what a policy lets a caller do.
type Decision struct {
	// Caller is the one of its identities that the rule matches.
	Caller Caller
	// Profile is Passthrough or the name of a profile; empty if the method is not allowed.
	Profile string
	// Rule is the number of the rule that decided, from 1, and Line where in the file it is; zero if none did.
	Rule, Line int
}

// methodSet is a set of the API's methods, one bit each.
type methodSet uint8

const (
	methodCreate methodSet = 1 << iota
	methodDelete
)

type methodName struct {
	name string
	bit  methodSet
}

// methodNames are the methods of the API, as a policy calls them.
var methodNames = []methodName{
	{"CreateToken", methodCreate},
	{"DeleteToken", methodDelete},
}

// methodBit takes a method's short name or its full gRPC name. What is neither is in no set.
func methodBit(method string) methodSet {
	switch method {
	case "CreateToken", ephemeraltokenv1.EphemeralTokenService_CreateToken_FullMethodName:
		return methodCreate
	case "DeleteToken", ephemeraltokenv1.EphemeralTokenService_DeleteToken_FullMethodName:
		return methodDelete
	}
	return 0
}

func (s methodSet) String() string {
	var names []string
	for _, m := range methodNames {
		if s&m.bit != 0 {
			names = append(names, m.name)
		}
	}
	return strings.Join(names, ", ")
}

// The keys of the selectors.
const (
	selectorSPIFFE = "spiffe_id"
	selectorOIDC   = "oidc"
	selectorDNS    = "dns_san"
	selectorAtlas  = "atlas_jwt"
)

// rule is one entry of callers. A caller matches if it is of the kind, and its name is the prefix and then something that
// the pattern matches.
type rule struct {
	line    int
	kind    string
	prefix  string // taken literally: the trust domain, the issuer
	pattern string
	allow   methodSet
	profile string
}

// separators are what a * in a rule for this kind never matches.
func separators(kind string) string {
	switch kind {
	case KindSPIFFE:
		return "/"
	case KindDNS:
		return "."
	case KindOIDC:
		return "/:"
	}
	return ""
}

func (r rule) isGlob() bool { return strings.Contains(r.pattern, "*") }

func (r rule) matches(c Caller) bool {
	if r.kind != c.Kind || !strings.HasPrefix(c.Name, r.prefix) {
		return false
	}
	return globMatch(r.pattern, c.Name[len(r.prefix):], separators(r.kind))
}

// covers reports whether every caller that other matches is matched by r.
func (r rule) covers(other rule) bool {
	return r.kind == other.kind && r.prefix == other.prefix && globMatch(r.pattern, other.pattern, separators(r.kind))
}

// selector is how the rule reads in a listing.
func (r rule) selector() string {
	switch r.kind {
	case KindSPIFFE:
		return selectorSPIFFE + " " + r.prefix + r.pattern
	case KindDNS:
		return selectorDNS + " " + r.pattern
	case KindOIDC:
		return selectorOIDC + " " + r.prefix + r.pattern
	}
	return selectorAtlas
}

func (r rule) as() string {
	if r.profile == Passthrough {
		return "with the caller's own Atlas JWT"
	}
	return "as profile " + r.profile
}

// index prepares the policy for Decide: rules for one caller each are looked up, only those with a * are tried in turn.
func (p *Policy) index() {
	p.files = make(map[string]string, len(p.profiles))
	for _, profile := range p.profiles {
		p.files[profile.Name] = profile.UserauthtokenFile
	}
	p.exact = make(map[Caller]int, len(p.rules))
	for i, r := range p.rules {
		if r.isGlob() {
			p.globs = append(p.globs, i)
			continue
		}
		c := Caller{Kind: r.kind, Name: r.prefix + r.pattern}
		if _, taken := p.exact[c]; !taken {
			p.exact[c] = i
		}
	}
}

// find returns the first rule that matches, and which of the identities it matches.
func (p *Policy) find(identities []Caller) (index int, caller Caller, found bool) {
	index = len(p.rules)
	for _, c := range identities {
		if i, ok := p.exact[c]; ok && i < index {
			index, caller = i, c
		}
		for _, i := range p.globs {
			if i >= index {
				break
			}
			if p.rules[i].matches(c) {
				index, caller = i, c
				break
			}
		}
	}
	return index, caller, index < len(p.rules)
}

// Decide says what a caller with these verified identities may do. The method is its short name, CreateToken, or its full
// gRPC name. The error is ErrNotPermitted or ErrUnknownCaller; the Decision with it tells the caller and the rule, if any.
func (p *Policy) Decide(identities []Caller, method string) (Decision, error) {
	i, caller, found := p.find(identities)
	if !found {
		known := slices.IndexFunc(identities, func(c Caller) bool { return c.Kind != "" && c.Kind != KindAtlas })
		if known < 0 {
			return Decision{}, ErrUnknownCaller
		}
		return Decision{Caller: identities[known]}, fmt.Errorf("%w: no rule in %s matches %s", ErrNotPermitted, p.name, identities[known])
	}
	r := p.rules[i]
	d := Decision{Caller: caller, Rule: i + 1, Line: r.line}
	if r.allow&methodBit(method) == 0 {
		return d, fmt.Errorf("%w: %s:%d (rule %d) allows %s only", ErrNotPermitted, p.name, r.line, i+1, r.allow)
	}
	d.Profile = r.profile
	return d, nil
}

// Explain says which rule a caller matches, in words. The caller is a SPIFFE ID, dns:NAME, oidc:ISSUER#SUBJECT or
// atlas_jwt; what is none of these is an error.
func (p *Policy) Explain(caller string) (string, error) {
	c, err := parseCaller(caller)
	if err != nil {
		return "", err
	}
	i, _, found := p.find([]Caller{c})
	if !found {
		return fmt.Sprintf("%s matches none of the %d rules in %s: it may do nothing", c, len(p.rules), p.name), nil
	}
	r := p.rules[i]
	return fmt.Sprintf("%s matches rule %d (%s:%d), %s: it may call %s, %s", c, i+1, p.name, r.line, r.selector(), r.allow, r.as()), nil
}

// parseCaller reads what Caller.String writes.
func parseCaller(text string) (Caller, error) {
	kind, name, _ := strings.Cut(text, ":")
	switch {
	case text == selectorAtlas:
		return Caller{Kind: KindAtlas}, nil
	case kind == KindSPIFFE:
		if err := checkSPIFFEID(text); err != nil {
			return Caller{}, fmt.Errorf("%q is no caller: %w", text, err)
		}
		return Caller{Kind: KindSPIFFE, Name: text}, nil
	case kind == KindDNS:
		name = strings.ToLower(name)
		if err := checkDNSName(name); err != nil {
			return Caller{}, fmt.Errorf("%q is no caller: %w", text, err)
		}
		return Caller{Kind: KindDNS, Name: name}, nil
	case kind == KindOIDC:
		issuer, subject, _ := strings.Cut(name, "#")
		if err := errors.Join(checkIssuer(issuer), checkSubject(subject)); err != nil {
			return Caller{}, fmt.Errorf("%q is no caller: %w", text, err)
		}
		return Caller{Kind: KindOIDC, Name: name}, nil
	}
	return Caller{}, fmt.Errorf("%q is no caller: give spiffe://TRUST-DOMAIN/PATH, dns:NAME, oidc:ISSUER#SUBJECT or %s", text, selectorAtlas)
}

// Profiles are the service's Atlas identities, in the order of the file.
func (p *Policy) Profiles() []Profile { return slices.Clone(p.profiles) }

// Issuers are those whose OIDC tokens are accepted, each once, in the order of the file.
func (p *Policy) Issuers() []Issuer { return slices.Clone(p.issuers) }

// NeedsCertificates reports whether a rule is for callers with client certificates.
func (p *Policy) NeedsCertificates() bool {
	return slices.ContainsFunc(p.rules, func(r rule) bool { return r.kind == KindSPIFFE || r.kind == KindDNS })
}

// AllowsWithoutCertificate reports whether a rule is for callers that need no client certificate: those with an OIDC token
// or an Atlas JWT.
func (p *Policy) AllowsWithoutCertificate() bool {
	return slices.ContainsFunc(p.rules, func(r rule) bool { return r.kind == KindOIDC || r.kind == KindAtlas })
}

// String lists what is in force, for people.
func (p *Policy) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "policy %s: the first rule whose selector matches decides; who matches none may do nothing\n", p.name)
	for i, r := range p.rules {
		fmt.Fprintf(w, "rule %d\tline %d\t%s\tmay call %s\t%s\n", i+1, r.line, r.selector(), r.allow, r.as())
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
