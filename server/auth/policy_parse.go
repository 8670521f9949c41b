package auth

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// The bounds of a policy. Checking each rule against all before it takes time that grows with the square of their number.
const (
	maxPolicySize = 1 << 20
	maxRules      = 5000
	maxMistakes   = 100 // reported; the rest is counted
	maxQuoted     = 200 // bytes of the file's text in a mistake
	maxName       = 63  // bytes in a profile's name
)

// Mistake is something wrong in a policy file.
type Mistake struct {
	File string
	Line int
	Text string
}

// Error returns file:line: text.
func (m *Mistake) Error() string { return fmt.Sprintf("%s:%d: %s", m.File, m.Line, m.Text) }

// ParsePolicy reads a policy in YAML. The name is the file's, for messages. The error joins a [*Mistake] for each that
// there is, in the order of the lines.
//
// It is strict: a key that it does not know, a rule that can never decide, a profile that nobody uses are mistakes, and so
// is whatever lets anybody at all use an identity of the service. YAML's anchors, aliases and tags are not accepted.
func ParsePolicy(name string, data []byte) (*Policy, error) {
	p := &policyParser{policy: &Policy{name: name}}
	if root := p.load(data); root != nil {
		p.document(root)
	}
	if err := p.err(); err != nil {
		return nil, err
	}
	p.policy.index()
	return p.policy, nil
}

type policyParser struct {
	policy   *Policy
	mistakes []*Mistake

	profileLines map[string]int  // every name given, also to a faulty profile
	used         map[string]bool // profiles that a rule names
	issuerLines  map[string]int
}

func (p *policyParser) mistake(line int, format string, args ...any) {
	p.mistakes = append(p.mistakes, &Mistake{File: p.policy.name, Line: max(line, 1), Text: fmt.Sprintf(format, args...)})
}

func (p *policyParser) err() error {
	slices.SortStableFunc(p.mistakes, func(a, b *Mistake) int { return cmp.Compare(a.Line, b.Line) })
	errs := make([]error, 0, maxMistakes+1)
	for i, m := range p.mistakes {
		if i == maxMistakes {
			errs = append(errs, fmt.Errorf("%s: and %d mistakes more", p.policy.name, len(p.mistakes)-i))
			break
		}
		errs = append(errs, m)
	}
	return errors.Join(errs...)
}

// load returns the root of the one document in data, nil after a mistake.
func (p *policyParser) load(data []byte) *yaml.Node {
	switch {
	case len(data) > maxPolicySize:
		p.mistake(1, "the file is larger than 1 MiB")
		return nil
	case !utf8.Valid(data):
		p.mistake(1, "the file is not UTF-8")
		return nil
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		p.syntax(err)
		return nil
	}
	var document, second yaml.Node
	if err := loader.Load(&document); errors.Is(err, io.EOF) || err == nil && len(document.Content) == 0 {
		p.mistake(1, "the file is empty")
		return nil
	} else if err != nil {
		p.syntax(err)
		return nil
	}
	if err := loader.Load(&second); err == nil {
		p.mistake(second.Line, "a second YAML document: a policy is one")
		return nil
	} else if !errors.Is(err, io.EOF) {
		p.syntax(err)
		return nil
	}
	if root := document.Content[0]; p.plain(root) {
		return root
	}
	return nil
}

func (p *policyParser) syntax(err error) {
	var at *yaml.LoadError
	if errors.As(err, &at) {
		p.mistake(at.Mark.Line, "not YAML: %s", quotable(at.Message))
		return
	}
	p.mistake(1, "not YAML")
}

// plain reports whether there is nothing but mappings, lists and scalars below a node: what it says is what is written
// there, and no file says more than it has bytes.
func (p *policyParser) plain(n *yaml.Node) bool {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		p.mistake(n.Line, "YAML's anchors and aliases are not accepted: write it out")
		return false
	case n.Style&yaml.TaggedStyle != 0:
		p.mistake(n.Line, "YAML's tags are not accepted")
		return false
	}
	ok := true
	for _, child := range n.Content {
		ok = p.plain(child) && ok
	}
	return ok
}

// fields are the values of a mapping, by key. What is wrong with the keys is reported.
func (p *policyParser) fields(n *yaml.Node, what string, known ...string) (map[string]*yaml.Node, bool) {
	if n.Kind != yaml.MappingNode {
		p.mistake(n.Line, "%s must be a mapping", what)
		return nil, false
	}
	fields, ok := make(map[string]*yaml.Node, len(n.Content)/2), true
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		switch _, taken := fields[key.Value]; {
		case key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str":
			p.mistake(key.Line, "a key in %s must be text", what)
			ok = false
		case taken:
			p.mistake(key.Line, "%s is twice in %s", quotable(key.Value), what)
			ok = false
		case known != nil && !slices.Contains(known, key.Value):
			p.mistake(key.Line, "unknown key %s in %s: it can have %s", quotable(key.Value), what, strings.Join(known, ", "))
			ok = false
		default:
			fields[key.Value] = value
		}
	}
	return fields, ok
}

// text is the value of a field that must be there and be text. The line is the mapping's, for when it is not.
func (p *policyParser) text(fields map[string]*yaml.Node, key, what string, line int) (string, bool) {
	n := fields[key]
	switch {
	case n == nil:
		p.mistake(line, "%s has no %s", what, key)
		return "", false
	case n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str":
		p.mistake(n.Line, "%s in %s must be text: quote it if it is", key, what)
		return "", false
	case n.Value == "":
		p.mistake(n.Line, "%s in %s is empty", key, what)
		return "", false
	}
	return n.Value, true
}

func (p *policyParser) document(root *yaml.Node) {
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" {
		p.mistake(root.Line, "the file is empty")
		return
	}
	fields, _ := p.fields(root, "the policy", "profiles", "callers")
	if fields == nil {
		return
	}
	p.profileLines, p.used, p.issuerLines = map[string]int{}, map[string]bool{}, map[string]int{}
	if n := fields["profiles"]; n != nil {
		p.profiles(n)
	}
	switch n := fields["callers"]; {
	case n == nil:
		p.mistake(root.Line, "the policy has no callers: nobody could call")
	case n.Kind != yaml.SequenceNode || len(n.Content) == 0:
		p.mistake(n.Line, "callers must be a list of at least one rule")
	case len(n.Content) > maxRules:
		p.mistake(n.Line, "callers has %d rules: %d is the most", len(n.Content), maxRules)
	default:
		for i, rule := range n.Content {
			p.rule(rule, fmt.Sprintf("rule %d", i+1))
		}
	}
	p.unreachable()
	for _, name := range slices.Sorted(maps.Keys(p.profileLines)) {
		if !p.used[name] {
			p.mistake(p.profileLines[name], "profile %s is never used", quotable(name))
		}
	}
}

func (p *policyParser) profiles(n *yaml.Node) {
	if fields, _ := p.fields(n, "profiles"); len(fields) == 0 {
		if fields != nil && len(n.Content) == 0 {
			p.mistake(n.Line, "profiles is empty: leave it out")
		}
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if _, taken := p.profileLines[key.Value]; taken || key.Kind != yaml.ScalarNode {
			continue // reported with the keys
		}
		p.profileLines[key.Value] = key.Line
		p.profile(key, value)
	}
}

func (p *policyParser) profile(key, value *yaml.Node) {
	what := "profile " + quotable(key.Value)
	if err := checkProfileName(key.Value); err != nil {
		p.mistake(key.Line, "%s: %v", what, err)
	}
	fields, _ := p.fields(value, what, "userauthtoken_file")
	if fields == nil {
		return
	}
	file, ok := p.text(fields, "userauthtoken_file", what, key.Line)
	if !ok {
		return
	}
	// Not quoted: somebody may have put the secret itself there.
	if !filepath.IsAbs(file) || filepath.Clean(file) != file || strings.ContainsRune(file, 0) {
		p.mistake(fields["userauthtoken_file"].Line, "userauthtoken_file in %s must be an absolute path without . or .. in it", what)
		return
	}
	p.policy.profiles = append(p.policy.profiles, Profile{Name: key.Value, UserauthtokenFile: file, Line: key.Line})
}

func checkProfileName(name string) error {
	switch {
	case name == Passthrough:
		return errors.New("the name is reserved for the caller's own Atlas JWT")
	case len(name) == 0 || len(name) > maxName || strings.IndexFunc(name, notNameRune) >= 0 || name[0] == '-':
		return fmt.Errorf("a name must have 1 to %d lower-case letters, digits and hyphens, and not begin with a hyphen", maxName)
	}
	return nil
}

func notNameRune(r rune) bool { return r == '_' || notLabelRune(r) }

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

// quotable is a text from the file, bounded and on one line.
func quotable(s string) string {
	if len(s) > maxQuoted {
		s = s[:maxQuoted] + "…"
	}
	return fmt.Sprintf("%q", s)
}

// oneLine makes one line of joined errors.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
