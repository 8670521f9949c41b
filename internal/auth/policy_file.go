package auth

import (
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// maxRules limits a policy file: finding unreachable rules takes quadratic time.
const maxRules = 5000

// The structure of the file.
type (
	policyFile struct {
		Profiles map[string]line[profileEntry] `yaml:"profiles"`
		Callers  callerList                    `yaml:"callers"`
	}
	callerList   []line[callerEntry]
	profileEntry struct {
		File string `yaml:"userauthtoken_file"`
	}
	callerEntry struct {
		SPIFFE  string     `yaml:"spiffe_id"`
		OIDC    *oidcEntry `yaml:"oidc"`
		DNS     string     `yaml:"dns_san"`
		Atlas   bool       `yaml:"atlas_jwt"`
		Allow   []string   `yaml:"allow"`
		Profile string     `yaml:"profile"`
	}
	oidcEntry struct {
		Issuer   string `yaml:"issuer"`
		Audience string `yaml:"audience"`
		Subject  string `yaml:"subject"`
	}
)

// ParsePolicy parses a policy in YAML. The name is the file's, for errors. The error joins all
// mistakes as file:line: text; values are checked once the structure is right.
//
// It refuses unknown keys, unreachable rules, unused profiles, selectors that match every caller,
// and YAML's anchors, aliases, tags and merge keys.
func ParsePolicy(name string, data []byte) (*Policy, error) {
	p := &policyParser{fileErrors: fileErrors{name: name}, policy: &Policy{name: name}}
	var file policyFile
	if p.load(data, &file) {
		p.check(file)
	}
	if err := p.err(); err != nil {
		return nil, err
	}
	p.policy.missing = noToken
	if p.policy.NeedsCertificates() {
		p.policy.missing = ErrMissing
	}
	return p.policy, nil
}

type policyParser struct {
	fileErrors
	policy *Policy
}

// check checks the values and builds the policy.
func (p *policyParser) check(file policyFile) {
	for _, name := range slices.Sorted(maps.Keys(file.Profiles)) {
		y := file.Profiles[name]
		p.addProfile(Profile{Name: name, UserauthtokenFile: y.entry.File, Line: y.number})
		if !slices.ContainsFunc(file.Callers, func(c line[callerEntry]) bool { return c.entry.Profile == name }) {
			p.errorf(y.number, "profile %.200q is never used", name)
		}
	}
	switch n := len(file.Callers); {
	case n == 0:
		p.errorf(1, "the policy has no callers: no call would be permitted")
	case n > maxRules:
		p.errorf(1, "the policy has %d callers: %d is the most", n, maxRules)
	default:
		for i, c := range file.Callers {
			if _, defined := file.Profiles[c.entry.Profile]; c.entry.Profile != "" && c.entry.Profile != Passthrough && !defined {
				p.errorf(c.number, "profile %.200q in rule %d is not defined under profiles", c.entry.Profile, i+1)
			}
			p.addRule(c.entry, c.number, fmt.Sprintf("rule %d", i+1))
		}
	}
}

func (p *policyParser) addProfile(profile Profile) {
	if err := checkProfileName(profile.Name); err != nil {
		p.errorf(profile.Line, "profile %.200q: %v", profile.Name, err)
	}
	switch file := profile.UserauthtokenFile; {
	case file == "":
		p.errorf(profile.Line, "profile %.200q has no userauthtoken_file", profile.Name)
	case !filepath.IsAbs(file) || filepath.Clean(file) != file || strings.ContainsRune(file, 0):
		// Not quoted: it may be the secret itself.
		p.errorf(profile.Line, "userauthtoken_file in profile %.200q must be an absolute path without . or .. in it", profile.Name)
	}
	p.policy.profiles = append(p.policy.profiles, profile)
}

// addRule adds one entry of callers. A rule with a valid selector is added even if it has other
// mistakes, so that unreachable rules behind it are found.
func (p *policyParser) addRule(y callerEntry, line int, what string) {
	if len(y.Allow) == 0 {
		p.errorf(line, "%s must allow at least one method", what)
	}
	for i, method := range y.Allow {
		if !slices.Contains(methods, method) {
			p.errorf(line, "unknown method %.200q in %s: there are %s", method, what, strings.Join(methods, ", "))
		} else if slices.Contains(y.Allow[:i], method) {
			p.errorf(line, "method %s is twice in %s", method, what)
		}
	}
	if y.Profile == "" {
		p.errorf(line, "%s has no profile", what)
	}
	slices.Sort(y.Allow)
	r := rule{line: line, allow: y.Allow, profile: y.Profile}
	if err := r.setSelector(y); err != nil {
		p.errorf(line, "%s: %v", what, err)
		return
	}
	switch {
	case r.kind == kindAtlas && r.profile != Passthrough && r.profile != "":
		p.errorf(line, "%s: only Atlas can verify an Atlas JWT, so %s needs profile %s", what, selectorAtlas, Passthrough)
	case r.kind == kindOIDC && r.profile == Passthrough:
		p.errorf(line, "%s: a caller with an OIDC token cannot send an Atlas JWT too, so %s excludes profile %s", what, selectorOIDC, Passthrough)
	}
	if y.OIDC != nil {
		p.addIssuer(issuerConfig{URL: y.OIDC.Issuer, Audience: y.OIDC.Audience}, line, what)
	}
	if first := slices.IndexFunc(p.policy.rules, func(earlier rule) bool { return earlier.covers(r) }); first >= 0 {
		p.errorf(line, "the rule for %.200q can never decide: the one in line %d matches first", r.selector(), p.policy.rules[first].line)
	}
	p.policy.rules = append(p.policy.rules, r)
}

func (p *policyParser) addIssuer(issuer issuerConfig, line int, what string) {
	first := slices.IndexFunc(p.policy.rules, func(r rule) bool { return r.prefix == issuer.URL+"#" })
	if first < 0 {
		p.policy.issuers = append(p.policy.issuers, issuer)
	} else if !slices.Contains(p.policy.issuers, issuer) {
		p.errorf(line, "%s: the issuer has another audience in line %d: it can have one", what, p.policy.rules[first].line)
	}
}

// setSelector sets the selector of a rule.
func (r *rule) setSelector(y callerEntry) (err error) {
	given := 0
	for _, there := range []bool{y.SPIFFE != "", y.OIDC != nil, y.DNS != "", y.Atlas} {
		if there {
			given++
		}
	}
	switch {
	case given != 1:
		return fmt.Errorf("it must have exactly one of %s, %s, %s, %s: true; it has %d", selectorSPIFFE, selectorOIDC, selectorDNS, selectorAtlas, given)
	case y.SPIFFE != "":
		r.kind = kindSPIFFE
		if r.prefix, r.pattern, err = splitSPIFFEPattern(y.SPIFFE); err != nil {
			return fmt.Errorf("%s %.200q: %w", selectorSPIFFE, y.SPIFFE, err)
		}
	case y.DNS != "":
		r.kind, r.pattern = kindDNS, strings.ToLower(y.DNS) // names compare without regard to case (RFC 4343)
		if err = checkDNSPattern(r.pattern); err != nil {
			return fmt.Errorf("%s %.200q: %w", selectorDNS, y.DNS, err)
		}
	case y.OIDC != nil:
		r.kind, r.prefix, r.pattern = kindOIDC, y.OIDC.Issuer+"#", y.OIDC.Subject
		return cmp.Or(checkIssuer(y.OIDC.Issuer), checkAudience(y.OIDC.Audience), checkSubjectPattern(y.OIDC.Subject))
	default:
		r.kind = kindAtlas
	}
	return nil
}
