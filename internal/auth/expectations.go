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

type expectationEntry struct {
	Caller  string `yaml:"caller"`
	Method  string `yaml:"method"`
	Profile string `yaml:"profile"`
	Denied  bool   `yaml:"denied"`
}

type expectationList []line[expectationEntry]

// ParseExpectations parses a list of expectations in YAML, as strictly as [ParsePolicy] parses a
// policy.
func ParseExpectations(name string, data []byte) ([]Expectation, error) {
	var (
		e        = &fileErrors{name: name}
		file     expectationList
		expected []Expectation
	)
	switch {
	case !e.load(data, &file):
		return nil, e.err()
	case len(file) == 0:
		e.errorf(1, "there are no expectations")
	}
	for _, l := range file {
		y := l.entry
		caller, err := parseCaller(y.Caller)
		if err != nil {
			e.errorf(l.number, "caller %v", err)
		}
		if !slices.Contains(methods, y.Method) {
			e.errorf(l.number, "unknown method %.200q: there are %s", y.Method, strings.Join(methods, ", "))
		}
		if (y.Profile != "") == y.Denied {
			e.errorf(l.number, "give either a profile or denied: true")
		}
		expected = append(expected, Expectation{fmt.Sprintf("%s:%d", name, l.number), caller, y.Method, y.Profile})
	}
	return expected, e.err()
}

// Unmet returns an error for each expectation that the policy does not meet.
func (p *Policy) Unmet(expected []Expectation) []error {
	var errs []error
	for _, e := range expected {
		if _, profile, _ := p.decide([]Caller{e.caller}, e.method); profile != e.profile {
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
