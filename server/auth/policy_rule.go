package auth

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// rule reads one entry of callers. It is kept if its selector is sound, so that rules can be compared with each other even
// if there are mistakes.
func (p *policyParser) rule(n *yaml.Node, what string) {
	fields, _ := p.fields(n, what, selectorSPIFFE, selectorOIDC, selectorDNS, selectorAtlas, "allow", "profile")
	if fields == nil {
		return
	}
	r := rule{line: n.Line, allow: p.allow(fields["allow"], what, n.Line)}
	profile, hasProfile := p.text(fields, "profile", what, n.Line)
	if hasProfile {
		r.profile = profile
		p.used[profile] = true
		if _, defined := p.profileLines[profile]; !defined && profile != Passthrough {
			p.mistake(fields["profile"].Line, "profile %s in %s is not defined under profiles", quotable(profile), what)
		}
	}
	if !p.selector(&r, fields, what) {
		return
	}
	switch {
	case !hasProfile:
	case r.kind == KindAtlas && r.profile != Passthrough:
		p.mistake(fields["profile"].Line, "%s: anybody can write down an Atlas JWT, so %s goes with profile %s only", what, selectorAtlas, Passthrough)
	case r.kind == KindOIDC && r.profile == Passthrough:
		p.mistake(fields["profile"].Line, "%s: a caller with an OIDC token has no place left for an Atlas JWT, so %s does not go with profile %s", what, selectorOIDC, Passthrough)
	}
	p.policy.rules = append(p.policy.rules, r)
}

func (p *policyParser) allow(n *yaml.Node, what string, line int) methodSet {
	switch {
	case n == nil:
		p.mistake(line, "%s has no allow", what)
		return 0
	case n.Kind != yaml.SequenceNode || len(n.Content) == 0:
		p.mistake(n.Line, "allow in %s must be a list of at least one method", what)
		return 0
	}
	var set methodSet
	for _, item := range n.Content {
		i := slices.IndexFunc(methodNames, func(m methodName) bool {
			return item.Kind == yaml.ScalarNode && item.Value == m.name
		})
		switch {
		case i < 0:
			p.mistake(item.Line, "unknown method %s in %s: there are %s", quotable(item.Value), what, methodCreate|methodDelete)
		case set&methodNames[i].bit != 0:
			p.mistake(item.Line, "method %s is twice in %s", item.Value, what)
		default:
			set |= methodNames[i].bit
		}
	}
	return set
}

// selector reads the one selector of a rule.
func (p *policyParser) selector(r *rule, fields map[string]*yaml.Node, what string) bool {
	var given []string
	for _, key := range []string{selectorSPIFFE, selectorOIDC, selectorDNS, selectorAtlas} {
		if fields[key] != nil {
			given = append(given, key)
		}
	}
	if len(given) != 1 {
		p.mistake(r.line, "%s must have exactly one of %s, %s, %s, %s: it has %d", what, selectorSPIFFE, selectorOIDC, selectorDNS, selectorAtlas, len(given))
		return false
	}
	n := fields[given[0]]
	switch given[0] {
	case selectorOIDC:
		return p.oidcSelector(r, n, "oidc in "+what)
	case selectorAtlas:
		r.kind = KindAtlas
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" || n.Value != "true" {
			p.mistake(n.Line, "%s in %s can only be true", selectorAtlas, what)
			return false
		}
		return true
	}
	pattern, ok := p.text(fields, given[0], what, r.line)
	if !ok {
		return false
	}
	var err error
	if given[0] == selectorSPIFFE {
		r.kind = KindSPIFFE
		r.prefix, r.pattern, err = splitSPIFFEPattern(pattern)
	} else {
		r.kind, r.pattern = KindDNS, strings.ToLower(pattern) // names compare without regard to case (RFC 4343)
		err = checkDNSPattern(r.pattern)
	}
	if err != nil {
		p.mistake(n.Line, "%s %s in %s: %s", given[0], quotable(pattern), what, oneLine(err))
		return false
	}
	return true
}

func (p *policyParser) oidcSelector(r *rule, n *yaml.Node, what string) bool {
	fields, ok := p.fields(n, what, "issuer", "audience", "subject")
	if fields == nil {
		return false
	}
	part := func(key string, check func(string) error) string {
		value, found := p.text(fields, key, what, n.Line)
		if !found {
			ok = false
		} else if err := check(value); err != nil {
			p.mistake(fields[key].Line, "%s %s: %s", what, quotable(value), oneLine(err))
			ok = false
		}
		return value
	}
	issuer := Issuer{URL: part("issuer", checkIssuer), Audience: part("audience", checkAudience)}
	r.kind, r.prefix, r.pattern = KindOIDC, issuer.URL+"#", part("subject", checkSubjectPattern)
	if !ok {
		return false
	}
	i := slices.IndexFunc(p.policy.issuers, func(i Issuer) bool { return i.URL == issuer.URL })
	switch {
	case i < 0:
		p.policy.issuers = append(p.policy.issuers, issuer)
		p.issuerLines[issuer.URL] = n.Line
	case p.policy.issuers[i].Audience != issuer.Audience:
		p.mistake(fields["audience"].Line, "%s: the issuer has another audience in line %d: it can have one", what, p.issuerLines[issuer.URL])
		return false
	}
	return true
}

// unreachable reports the rules that can never decide, because an earlier one matches whoever they match.
func (p *policyParser) unreachable() {
	first := make(map[Caller]int, len(p.policy.rules))
	var globs []rule
	for _, r := range p.policy.rules {
		c := Caller{Kind: r.kind, Name: r.prefix + r.pattern}
		earlier, shadowed := first[c]
		if !shadowed {
			first[c] = r.line
			if i := slices.IndexFunc(globs, func(g rule) bool { return g.covers(r) }); i >= 0 {
				earlier, shadowed = globs[i].line, true
			}
		}
		if shadowed {
			p.mistake(r.line, "the rule for %s can never decide: the one in line %d matches first", quotable(r.selector()), earlier)
		}
		if r.isGlob() {
			globs = append(globs, r)
		}
	}
}
