package auth

import (
	"fmt"
	"slices"
	"strings"
)

// Expectation is what a policy should decide about one caller and method.
type Expectation struct {
	where   string // file:line
	caller  Caller
	method  string
	profile string // empty: the call is denied
}

type expectationYAML struct {
	Caller  string `yaml:"caller"`
	Method  string `yaml:"method"`
	Profile string `yaml:"profile"`
	Denied  bool   `yaml:"denied"`
}

// ParseExpectations parses a list of expectations in YAML, as strictly as [ParsePolicy] parses a policy.
func ParseExpectations(name string, data []byte) ([]Expectation, error) {
	var (
		p        = &policyParser{policy: &Policy{name: name}}
		file     []expectationYAML
		expected []Expectation
	)
	root := p.load(data, &file)
	if root != nil && len(file) == 0 {
		p.errorf(root.Line, "there are no expectations")
	}
	for i, y := range file {
		line := root.Content[i].Line
		caller, err := parseCaller(y.Caller)
		if err != nil {
			p.errorf(line, "caller %s", oneLine(err))
		}
		if !slices.Contains(methods, y.Method) {
			p.errorf(line, "unknown method %s: there are %s", quotable(y.Method), strings.Join(methods, ", "))
		}
		if (y.Profile != "") == y.Denied {
			p.errorf(line, "give either a profile or denied: true")
		}
		expected = append(expected, Expectation{fmt.Sprintf("%s:%d", name, line), caller, y.Method, y.Profile})
	}
	if len(p.errs) > 0 {
		return nil, p.err()
	}
	return expected, nil
}

// Unmet returns an error for each expectation that the policy does not meet.
func (p *Policy) Unmet(expected []Expectation) []error {
	var errs []error
	for _, e := range expected {
		if d, _ := p.decide([]Caller{e.caller}, e.method); d.Profile != e.profile {
			text, _ := p.explain(e.caller)
			want := "profile " + e.profile
			if e.profile == "" {
				want = "denied"
			}
			errs = append(errs, fmt.Errorf("%s: %s: want %s, but %s; correct this line or the policy", e.where, e.method, want, text))
		}
	}
	return errs
}
