package auth

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// Limits of a policy file. Finding unreachable rules takes quadratic time.
const (
	maxPolicySize       = 1 << 20
	maxRules            = 5000
	maxValidationErrors = 100 // more are only counted
	maxQuoted           = 200 // bytes of the file quoted in an error
	maxName             = 63  // bytes in a profile's name
)

// validationError is a mistake in a policy file.
type validationError struct {
	File string
	Line int
	Text string
}

// Error returns file:line: text.
func (e *validationError) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Text) }

// The structure of the file.
type (
	policyYAML struct {
		Profiles map[string]profileYAML `yaml:"profiles"`
		Callers  []ruleYAML             `yaml:"callers"`
	}
	profileYAML struct {
		File string `yaml:"userauthtoken_file"`
	}
	ruleYAML struct {
		SPIFFE  string    `yaml:"spiffe_id"`
		OIDC    *oidcYAML `yaml:"oidc"`
		DNS     string    `yaml:"dns_san"`
		Atlas   bool      `yaml:"atlas_jwt"`
		Allow   []string  `yaml:"allow"`
		Profile string    `yaml:"profile"`
	}
	oidcYAML struct {
		Issuer   string `yaml:"issuer"`
		Audience string `yaml:"audience"`
		Subject  string `yaml:"subject"`
	}
)

// knownKeys are the keys of the types above, by the names the YAML library gives the types.
var knownKeys = map[string]string{
	"auth.policyYAML":  "profiles, callers",
	"auth.profileYAML": "userauthtoken_file",
	"auth.ruleYAML":    "spiffe_id, oidc, dns_san, atlas_jwt, allow, profile",
	"auth.oidcYAML":    "issuer, audience, subject",

	"auth.expectationYAML": "caller, method, profile, denied",
}

// ParsePolicy parses a policy in YAML. The name is the file's, for errors. The error joins all
// mistakes as file:line: text, by line; values are checked only if all types are right.
//
// It refuses unknown keys, unreachable rules, unused profiles, selectors that match every caller, and
// YAML's anchors, aliases, tags and merge keys.
func ParsePolicy(name string, data []byte) (*Policy, error) {
	p, file := &policyParser{policy: &Policy{name: name}}, &policyYAML{}
	if root := p.load(data, file); root != nil {
		p.check(root, file)
	}
	if len(p.errs) > 0 {
		return nil, p.err()
	}
	return p.policy, nil
}

type policyParser struct {
	policy *Policy
	errs   []*validationError
}

func (p *policyParser) errorf(line int, format string, args ...any) {
	p.errs = append(p.errs, &validationError{File: p.policy.name, Line: max(line, 1), Text: fmt.Sprintf(format, args...)})
}

func (p *policyParser) err() error {
	slices.SortStableFunc(p.errs, func(a, b *validationError) int { return cmp.Compare(a.Line, b.Line) })
	errs := make([]error, 0, maxValidationErrors+1)
	for i, e := range p.errs {
		if i == maxValidationErrors {
			errs = append(errs, fmt.Errorf("%s: and %d more validation errors", p.policy.name, len(p.errs)-i))
			break
		}
		errs = append(errs, e)
	}
	return errors.Join(errs...)
}

// load decodes data into file. The node, which has the line numbers, is nil if file cannot be checked further.
func (p *policyParser) load(data []byte, file any) *yaml.Node {
	switch {
	case len(data) > maxPolicySize:
		p.errorf(1, "the file is larger than 1 MiB")
		return nil
	case !utf8.Valid(data):
		p.errorf(1, "the file is not UTF-8")
		return nil
	}
	var document yaml.Node
	if err := yaml.Load(data, &document); err != nil {
		p.loadErrors(err)
		return nil
	}
	root := document.Content[0]
	if root.ShortTag() == "!!null" {
		p.errorf(1, "the file is empty")
		return nil
	}
	if !p.plain(root) || !p.loadErrors(root.Load(file, yaml.WithKnownFields())) {
		return nil
	}
	return root
}

// inOurWords replaces errors of the YAML library, which quote the file and so could quote a secret. The
// last entry matches all.
var inOurWords = []struct{ theirs, ours string }{
	{"no documents", "the file is empty"},
	{"found multiple", "a second YAML document: there can be one"},
	{"already defined", "the same key is twice in one mapping"},
	{" into string", "this must be text"},
	{" into bool", "this must be true"},
	{" into []", "this must be a list"},
	{"", "this must be a mapping"},
}

// loadErrors records the YAML library's errors, and reports whether the values can still be checked.
func (p *policyParser) loadErrors(err error) bool {
	var (
		syntax *yaml.LoadError
		typed  = &yaml.LoadErrors{}
		ok     = true
	)
	switch {
	case err == nil || errors.As(err, &typed):
	case errors.As(err, &syntax):
		p.errorf(syntax.Mark.Line, "not YAML: %s", quotable(syntax.Message))
		return false
	default:
		p.errorf(1, "not YAML")
		return false
	}
	for _, e := range typed.Errors {
		if key, in, unknown := strings.Cut(strings.TrimPrefix(e.Message, "field "), " not found in type "); unknown {
			p.errorf(e.Mark.Line, "unknown key %s: there can be %s", quotable(key), knownKeys[in])
			continue
		}
		ok = false
		for _, words := range inOurWords {
			if strings.Contains(e.Message, words.theirs) {
				p.errorf(e.Mark.Line, "column %d: %s", max(e.Mark.Column, 1), words.ours)
				break
			}
		}
	}
	return ok
}

// plain reports whether a node has only mappings, lists and scalars, so that no alias can expand.
func (p *policyParser) plain(n *yaml.Node) bool {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "" || n.ShortTag() == "!!merge":
		p.errorf(n.Line, "YAML's anchors, aliases and merge keys are not accepted: write it out")
		return false
	case n.Style&yaml.TaggedStyle != 0:
		p.errorf(n.Line, "YAML's tags are not accepted")
		return false
	case n.ShortTag() == "!!null":
		p.errorf(n.Line, "there is no value in column %d: give one, or leave the key out", n.Column)
		return false
	}
	ok := true
	for _, child := range n.Content {
		ok = p.plain(child) && ok
	}
	return ok
}

// check checks the values and builds the policy.
func (p *policyParser) check(root *yaml.Node, file *policyYAML) {
	profiles, callers := valueOf(root, "profiles"), valueOf(root, "callers")
	if len(file.Profiles) == 0 && file.Profiles != nil {
		p.errorf(profiles.Line, "profiles is empty: leave it out")
	}
	for i := 0; i+1 < len(profiles.Content); i += 2 {
		name := profiles.Content[i].Value
		p.profile(Profile{Name: name, UserauthtokenFile: file.Profiles[name].File, Line: profiles.Content[i].Line})
		if !slices.ContainsFunc(file.Callers, func(y ruleYAML) bool { return y.Profile == name }) {
			p.errorf(profiles.Content[i].Line, "profile %s is never used", quotable(name))
		}
	}
	switch {
	case len(file.Callers) == 0:
		p.errorf(callers.Line, "the policy has no callers: no call would be permitted")
	case len(file.Callers) > maxRules:
		p.errorf(callers.Line, "callers has %d rules: %d is the most", len(file.Callers), maxRules)
	default:
		for i, y := range file.Callers {
			if _, defined := file.Profiles[y.Profile]; y.Profile != "" && y.Profile != Passthrough && !defined {
				p.errorf(callers.Content[i].Line, "profile %s in rule %d is not defined under profiles", quotable(y.Profile), i+1)
			}
			p.rule(y, callers.Content[i].Line, fmt.Sprintf("rule %d", i+1))
		}
	}
	p.unreachable()
}

// valueOf returns the value of a key, or an empty node with the mapping's line.
func valueOf(mapping *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return mapping.Content[i+1]
		}
	}
	return &yaml.Node{Line: mapping.Line}
}

func (p *policyParser) profile(profile Profile) {
	if err := checkProfileName(profile.Name); err != nil {
		p.errorf(profile.Line, "profile %s: %v", quotable(profile.Name), err)
	}
	switch file := profile.UserauthtokenFile; {
	case file == "":
		p.errorf(profile.Line, "profile %s has no userauthtoken_file", quotable(profile.Name))
	case !filepath.IsAbs(file) || filepath.Clean(file) != file || strings.ContainsRune(file, 0):
		// Not quoted: it may be the secret itself.
		p.errorf(profile.Line, "userauthtoken_file in profile %s must be an absolute path without . or .. in it", quotable(profile.Name))
	}
	p.policy.profiles = append(p.policy.profiles, profile)
}

// rule adds one entry of callers. A rule with a valid selector is added even if it has other mistakes,
// so that unreachable finds the rules behind it.
func (p *policyParser) rule(y ruleYAML, line int, what string) {
	if len(y.Allow) == 0 {
		p.errorf(line, "%s must allow at least one method", what)
	}
	for i, method := range y.Allow {
		if !slices.Contains(methods, method) {
			p.errorf(line, "unknown method %s in %s: there are %s", quotable(method), what, strings.Join(methods, ", "))
		} else if slices.Contains(y.Allow[:i], method) {
			p.errorf(line, "method %s is twice in %s", method, what)
		}
	}
	if y.Profile == "" {
		p.errorf(line, "%s has no profile", what)
	}
	slices.Sort(y.Allow)
	r := rule{line: line, allow: y.Allow, profile: y.Profile}
	if err := r.selects(y); err != nil {
		p.errorf(line, "%s: %s", what, oneLine(err))
		return
	}
	switch {
	case r.kind == kindAtlas && r.profile != Passthrough && r.profile != "":
		p.errorf(line, "%s: only Atlas can verify an Atlas JWT, so %s needs profile %s", what, selectorAtlas, Passthrough)
	case r.kind == kindOIDC && r.profile == Passthrough:
		p.errorf(line, "%s: a caller with an OIDC token cannot send an Atlas JWT too, so %s excludes profile %s", what, selectorOIDC, Passthrough)
	}
	if y.OIDC != nil {
		p.issuer(issuerConfig{URL: y.OIDC.Issuer, Audience: y.OIDC.Audience}, line, what)
	}
	p.policy.rules = append(p.policy.rules, r)
}

func (p *policyParser) issuer(issuer issuerConfig, line int, what string) {
	first := slices.IndexFunc(p.policy.rules, func(r rule) bool { return r.prefix == issuer.URL+"#" })
	if first < 0 {
		p.policy.issuers = append(p.policy.issuers, issuer)
	} else if !slices.Contains(p.policy.issuers, issuer) {
		p.errorf(line, "%s: the issuer has another audience in line %d: it can have one", what, p.policy.rules[first].line)
	}
}

// selects sets the selector of a rule.
func (r *rule) selects(y ruleYAML) (err error) {
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
			return fmt.Errorf("%s %s: %w", selectorSPIFFE, quotable(y.SPIFFE), err)
		}
	case y.DNS != "":
		r.kind, r.pattern = kindDNS, strings.ToLower(y.DNS) // names compare without regard to case (RFC 4343)
		if err = checkDNSPattern(r.pattern); err != nil {
			return fmt.Errorf("%s %s: %w", selectorDNS, quotable(y.DNS), err)
		}
	case y.OIDC != nil:
		r.kind, r.prefix, r.pattern = kindOIDC, y.OIDC.Issuer+"#", y.OIDC.Subject
		err = errors.Join(checkIssuer(y.OIDC.Issuer), checkAudience(y.OIDC.Audience), checkSubjectPattern(y.OIDC.Subject))
	default:
		r.kind = kindAtlas
	}
	return err
}

// unreachable reports rules that can never decide because an earlier one matches all their callers.
func (p *policyParser) unreachable() {
	for i, r := range p.policy.rules {
		if first := slices.IndexFunc(p.policy.rules[:i], func(earlier rule) bool { return earlier.covers(r) }); first >= 0 {
			p.errorf(r.line, "the rule for %s can never decide: the one in line %d matches first", quotable(r.selector()), p.policy.rules[first].line)
		}
	}
}

// quotable returns a text from outside, quoted and shortened.
func quotable(s string) string {
	if len(s) > maxQuoted {
		s = s[:maxQuoted] + "…"
	}
	return fmt.Sprintf("%q", s)
}

// oneLine puts joined errors on one line.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
