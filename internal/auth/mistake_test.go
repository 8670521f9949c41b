package auth

import (
	"errors"
	"strings"
	"testing"
)

// TestMistakes gives each common mistake with its advice, which quotes nothing.
func TestMistakes(t *testing.T) {
	const sent = "c2VjcmV0"
	for value, want := range map[string]error{
		"Basic " + sent: otherScheme, "token " + sent: otherScheme, `Digest username="` + sent + `"`: otherScheme,
		"a.b." + sent:             noScheme,
		"JWT JWT a.b." + sent:     twoSchemes,
		"Bearer JWT a.b." + sent:  twoSchemes,
		"JWT":                     onlyScheme,
		"Bearer  ":                onlyScheme,
		"JWT $" + sent:            unexpanded,
		"JWT ${" + sent + "}":     unexpanded,
		"JWT {{" + sent + "}}":    unexpanded,
		"JWT %" + sent + "%":      unexpanded,
		"JWT <" + sent + ">":      unexpanded,
		`"JWT a.b.` + sent + `"`:  quoted,
		`JWT 'a.b.` + sent + `'`:  quoted,
		"JWT " + sent:             ErrMalformed,
		"JWT a.b.c, JWT a.b.c":    ErrMalformed,
		"unknown a.b.c" + sent:    ErrMalformed,
		"JWT a.b.c " + sent + " ": ErrMalformed,
	} {
		_, _, err := parseCredential([]string{value})
		if !errors.Is(err, want) || !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, want %v", value, err, want)
		}
		if err != nil && strings.Contains(err.Error(), sent) {
			t.Errorf("%s is in its error: %v", value, err)
		}
	}
}
