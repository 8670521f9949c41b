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
// rule is asked. If a caller is verified in several ways, by certificate and by OIDC token, a rule matches if it matches one
// of them.
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
	issuers  []issuerConfig
	rules    []rule
}

// Profile is an Atlas identity that the service holds.
type Profile struct {
	// Name is what rules call it.
	Name string
	// UserauthtokenFile is the absolute path of the file that holds the secret.
	UserauthtokenFile string
	// Line is where in the policy file it is.
	Line int
}

// issuerConfig is somebody whose OIDC tokens are accepted.
type issuerConfig struct {
	// URL is what its tokens have as iss, and where its keys are found.
	URL string
	// Audience is what they must have as aud, and nothing else beside it.
	Audience string
}

// decision is what a policy lets a caller do.
type decision struct {
	// Caller is the one of those given that the rule matches.
	Caller Caller
	// Profile is Passthrough or the name of a profile; empty if the method is not allowed.
	Profile string
	// Rule is the number of the rule that decided, from 1; zero if none did.
	Rule int
}

// methods lists the names of the service's methods in a policy.
var methods = func() []string {
	var names []string
	for _, method := range ephemeraltokenv1.EphemeralTokenService_ServiceDesc.Methods {
		names = append(names, method.MethodName)
	}
	return names
}()

// methodName takes a method's short name or its full gRPC name, and returns the short one. Of another service's it makes none.
func methodName(method string) string {
	return strings.TrimPrefix(method, "/"+ephemeraltokenv1.EphemeralTokenService_ServiceDesc.ServiceName+"/")
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
	allow   []string // short names, sorted
	profile string
}

// separators are what a * never matches, beside the slash.
var separators = map[string]string{kindSPIFFE: "/", kindDNS: ".", kindOIDC: ":"}

func (r rule) matches(c Caller) bool {
	return r.kind == c.Kind && strings.HasPrefix(c.Name, r.prefix) && matchGlob(r.pattern, c.Name[len(r.prefix):], separators[r.kind])
}

// covers reports whether every caller that other matches is matched by r. Only a * matches the * of another pattern, and what
// that can stand for is just what it can be replaced with.
func (r rule) covers(other rule) bool {
	return r.kind == other.kind && r.prefix == other.prefix && matchGlob(r.pattern, other.pattern, separators[r.kind])
}

// matchGlob is path.Match for patterns whose only special character is a *, which does not cross the separator either.
func matchGlob(pattern, name, separator string) bool {
	if !strings.Contains(pattern, "*") {
		return pattern == name // so it may have what is special to path.Match in it
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

// selector is how the rule reads in a listing.
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

// find returns the index of the first rule that matches, and which of the callers it matches; -1 if there is none.
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

// decide says what a caller that has been verified to be all of these may do. The method is its short name, CreateToken, or
// its full gRPC name. The error is ErrNotPermitted or ErrUnknownCaller; the decision with it tells the caller and the rule,
// if any.
func (p *Policy) decide(callers []Caller, method string) (decision, error) {
	i, caller := p.find(callers)
	if i < 0 {
		known := slices.IndexFunc(callers, func(c Caller) bool { return c.Kind != "" && c.Kind != kindAtlas })
		if known < 0 {
			return decision{}, ErrUnknownCaller
		}
		return decision{Caller: callers[known]}, fmt.Errorf("%w: no rule in %s matches %s", ErrNotPermitted, p.name, callers[known])
	}
	r := p.rules[i]
	if !slices.Contains(r.allow, methodName(method)) {
		return decision{Caller: caller, Rule: i + 1}, fmt.Errorf("%w: %s:%d (rule %d) allows %s only", ErrNotPermitted, p.name, r.line, i+1, r.may())
	}
	return decision{caller, r.profile, i + 1}, nil
}

// Explain says which rule a caller matches, in words. The caller is a SPIFFE ID, dns:NAME, oidc:ISSUER#SUBJECT or
// atlas_jwt; what is none of these is an error.
func (p *Policy) Explain(caller string) (string, error) {
	c, err := parseCaller(caller)
	if err != nil {
		return "", err
	}
	i, _ := p.find([]Caller{c})
	if i < 0 {
		return fmt.Sprintf("%s matches none of the %d rules in %s: it may do nothing", c, len(p.rules), p.name), nil
	}
	r := p.rules[i]
	return fmt.Sprintf("%s matches rule %d (%s:%d), %s: it may call %s, %s", c, i+1, p.name, r.line, r.selector(), r.may(), r.as()), nil
}

// Profiles are the service's own, in the order of the file.
func (p *Policy) Profiles() []Profile { return slices.Clone(p.profiles) }

// Issuers are the URLs of those whose OIDC tokens are accepted, in the order of the file.
func (p *Policy) Issuers() []string {
	urls := make([]string, 0, len(p.issuers))
	for _, issuer := range p.issuers {
		urls = append(urls, issuer.URL)
	}
	return urls
}

// AcceptsOIDC reports whether a rule is for callers with an OIDC token.
func (p *Policy) AcceptsOIDC() bool { return len(p.issuers) > 0 }

// NeedsCertificates reports whether a rule is for callers with client certificates.
func (p *Policy) NeedsCertificates() bool {
	return slices.ContainsFunc(p.rules, func(r rule) bool { return r.kind == kindSPIFFE || r.kind == kindDNS })
}

// NeedsDNSNames reports whether a rule is for callers with client certificates that have no SPIFFE ID.
func (p *Policy) NeedsDNSNames() bool {
	return slices.ContainsFunc(p.rules, func(r rule) bool { return r.kind == kindDNS })
}

// allowsWithoutCertificate reports whether a rule is for callers that need no client certificate: those with an OIDC token
// or an Atlas JWT.
func (p *Policy) allowsWithoutCertificate() bool {
	return slices.ContainsFunc(p.rules, func(r rule) bool { return r.kind == kindOIDC || r.kind == kindAtlas })
}

// asksForCertificates reports whether a rule is for callers with a client certificate.
func (p *Policy) asksForCertificates() bool {
	return slices.ContainsFunc(p.rules, func(r rule) bool { return r.kind != kindOIDC && r.kind != kindAtlas })
}

// usesPassthrough reports whether a rule is for callers with an Atlas JWT of their own.
func (p *Policy) usesPassthrough() bool {
	return slices.ContainsFunc(p.rules, func(r rule) bool { return r.profile == Passthrough })
}

// String lists what is in force, for people.
func (p *Policy) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "policy %s: the first rule whose selector matches decides; who matches none may do nothing\n", p.name)
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
