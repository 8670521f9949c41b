package auth_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
)

func TestParseCredential(t *testing.T) {
	long := "a.b." + strings.Repeat("c", 8<<10)
	for _, tc := range []struct {
		name   string
		values []string
		want   atlas.JWT
		err    error
	}{
		{"JWT", []string{"JWT a.b.c"}, "a.b.c", nil},
		{"Bearer", []string{"Bearer a.b.c"}, "a.b.c", nil},
		{"any case", []string{"bEARER a.b.c"}, "a.b.c", nil},
		{"several spaces", []string{"JWT   a.b.c"}, "a.b.c", nil},
		{"the whole alphabet", []string{"JWT aZ09-_.aZ09-_.aZ09-_"}, "aZ09-_.aZ09-_.aZ09-_", nil},
		{"none", nil, "", auth.ErrMissing},
		{"empty", []string{""}, "", auth.ErrMissing},
		{"two", []string{"JWT a.b.c", "JWT a.b.c"}, "", auth.ErrAmbiguous},
		{"an empty one beside one", []string{"", "JWT a.b.c"}, "", auth.ErrAmbiguous},
		{"no scheme", []string{"a.b.c"}, "", auth.ErrMalformed},
		{"another scheme", []string{"Basic a.b.c"}, "", auth.ErrMalformed},
		{"a scheme alone", []string{"JWT"}, "", auth.ErrMalformed},
		{"a scheme and a space", []string{"JWT "}, "", auth.ErrMalformed},
		{"a tab for a space", []string{"JWT\ta.b.c"}, "", auth.ErrMalformed},
		{"space before", []string{" JWT a.b.c"}, "", auth.ErrMalformed},
		{"space after", []string{"JWT a.b.c "}, "", auth.ErrMalformed},
		{"two parts", []string{"JWT a.b"}, "", auth.ErrMalformed},
		{"four parts", []string{"JWT a.b.c.d"}, "", auth.ErrMalformed},
		{"an empty part", []string{"JWT a..c"}, "", auth.ErrMalformed},
		{"padding", []string{"JWT a=.b.c"}, "", auth.ErrMalformed},
		{"two in one value", []string{"JWT a.b.c, JWT a.b.c"}, "", auth.ErrMalformed},
		{"CR", []string{"JWT a.b.c\r"}, "", auth.ErrMalformed},
		{"LF", []string{"JWT a.b.\nc"}, "", auth.ErrMalformed},
		{"NUL", []string{"JWT a.b.c\x00"}, "", auth.ErrMalformed},
		{"non-ASCII", []string{"JWT a.b.é"}, "", auth.ErrMalformed},
		{"not UTF-8", []string{"JWT a.b.\xff"}, "", auth.ErrMalformed},
		{"8 KiB", []string{"JWT " + long[:8<<10-4]}, atlas.JWT(long[:8<<10-4]), nil},
		{"over 8 KiB", []string{"JWT " + long[:8<<10-3]}, "", auth.ErrMalformed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := auth.ParseCredential(tc.values)
			if got != tc.want || !errors.Is(err, tc.err) {
				t.Errorf("got %q, %v; want %q, %v", string(got), err, string(tc.want), tc.err)
			}
		})
	}
}

// FuzzParseCredential checks that an accepted credential has three parts in the alphabet of a JWT
// and is part of the value, and that no error quotes the value.
func FuzzParseCredential(f *testing.F) {
	for _, seed := range []string{"JWT a.b.c", "Bearer a.b.c", "JWT  a.b.c", "Basic x", "JWT a.b.c\r\nX: y", "jwt a.b", "", "JWT a.b.\x00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		jwt, err := auth.ParseCredential([]string{value})
		if err != nil {
			if jwt != "" {
				t.Errorf("an error and a credential: %q", string(jwt))
			}
			// Fixed errors, or a *Mistake, which is fixed too: nothing of the value can be in them.
			if _, fixed := errors.AsType[*auth.Mistake](err); !fixed && !slices.Contains([]error{auth.ErrMissing, auth.ErrMalformed}, err) {
				t.Errorf("an error of another kind: %v", err)
			}
			return
		}
		scheme, rest, _ := strings.Cut(value, " ")
		if !strings.EqualFold(scheme, "JWT") && !strings.EqualFold(scheme, "Bearer") {
			t.Errorf("scheme %q was accepted", scheme)
		}
		if strings.TrimLeft(rest, " ") != string(jwt) {
			t.Errorf("%q became %q", value, string(jwt))
		}
		if strings.Trim(string(jwt), "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" || strings.Count(string(jwt), ".") != 2 {
			t.Errorf("%q is not a JWT", string(jwt))
		}
		if s := fmt.Sprintf("%v %+v %#v %s %q", jwt, jwt, jwt, jwt, jwt); strings.Contains(s, string(jwt)) {
			t.Errorf("the credential prints itself: %s", s)
		}
	})
}
