package auth

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v4"
)

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
