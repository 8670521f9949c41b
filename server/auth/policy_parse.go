package auth

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

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

// quotable is a text from the file, bounded and on one line.
func quotable(s string) string {
	if len(s) > maxQuoted {
		s = s[:maxQuoted] + "…"
	}
	return fmt.Sprintf("%q", s)
}

// oneLine makes one line of joined errors.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
