package auth_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
)

func TestMatchGlob(t *testing.T) {
	for _, tc := range []struct {
		pattern, text, separator string
		want                     bool
	}{
		{"", "", "/", true},
		{"a", "a", "/", true},
		{"a", "A", "/", false},
		{"a", "ab", "/", false},
		{"a", "ba", "/", false},
		{"*", "", "/", true},
		{"*", "abc", "/", true},
		{"*", "a/b", "/", false},
		{"ci-*", "ci-", "/", true},
		{"ci-*", "ci-1", "/", true},
		{"ci-*", "xci-1", "/", false},
		{"*-ci", "a-ci-ci", "/", true},
		{"a*b*c", "abbbc", "/", true},
		{"a*b*c", "acb", "/", false},
		{"a/*/c", "a/b/c", "/", true},
		{"a/*/c", "a/b/b/c", "/", false},
		{"a/*/c", "a//c", "/", true},
		{"a/*", "a", "/", false},
		{"*/x*y", "a/b/xy", "/", false},
		{"*/x*y", "a/xzy", "/", true},
		{"*a/*b", "aaa/bbb", "/", true},
		{"repo:o/*:ref", "repo:o/r:ref", ":", true},
		{"repo:o/*:ref", "repo:o/r:pull:ref", ":", false},
		{"a*", "a/b", ":", false},
		{"a*b", "a:b", ":", false},
		{"a/*/b", "a:b", ":", false},
		{"*:b", "a/b", ":", false},
		{"*.b", "a.b.b", ".", false},
		{"*.b", "a.b", ".", true},
		{"*.b", "b", ".", false},
		{"a?[b]\\", "a?[b]\\", ":", true}, // nothing is special without a *
		{"a?", "ab", ":", false},
		{"ci-*", "ci-*", "/", true},   // a pattern covers itself
		{"ci-*", "ci-1*", "/", true},  // and one that says more
		{"ci-1*", "ci-*", "/", false}, // not one that says less
		{"ci-1", "ci-*", "/", false},
		{strings.Repeat("*a", 50), strings.Repeat("a", 200) + "b", "/", false},
	} {
		if got := auth.MatchGlob(tc.pattern, tc.text, tc.separator); got != tc.want {
			t.Errorf("%q on %q: %v", tc.pattern, tc.text, got)
		}
	}
}

// FuzzMatchGlob compares with a regular expression.
func FuzzMatchGlob(f *testing.F) {
	f.Add("a*b", "axb")
	f.Add("*/x*", "a/x")
	f.Fuzz(func(t *testing.T, pattern, text string) {
		if strings.ContainsAny(text, "\n") || strings.ContainsAny(pattern, `?[\`) || len(pattern) > 100 || len(text) > 100 {
			return
		}
		quoted := strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, `[^/:]*`)
		re, err := regexp.Compile(`\A(?:` + quoted + `)\z`)
		if err != nil || strings.ToValidUTF8(text, "") != text {
			return
		}
		if got, want := auth.MatchGlob(pattern, text, ":"), re.MatchString(text); got != want {
			t.Errorf("%q on %q: %v, want %v", pattern, text, got, want)
		}
	})
}
