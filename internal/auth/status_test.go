package auth_test

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
)

// identity is one that Atlas lets in, or not.
type identity struct{ refused bool }

func (i identity) LogIn(context.Context, atlas.UserAuthToken) (atlas.JWT, error) {
	if i.refused {
		return "", &atlas.Error{Op: atlas.OpLogIn, Kind: atlas.KindStatus, StatusCode: http.StatusUnauthorized, Sent: true, Err: errors.New("refused")}
	}
	return "", &atlas.Error{Op: atlas.OpLogIn, Kind: atlas.KindUnreachable, Err: errors.New("down")}
}

func (i identity) RefreshJWT(context.Context, atlas.JWT) (atlas.JWT, error) { panic("there is none") }

// source is that of an identity which has tried to log in.
func source(t *testing.T, i identity) *atlas.TokenSource {
	t.Helper()
	s := atlas.NewTokenSource(atlas.TokenSourceConfig{Client: i, Profile: "p", Secret: func() (atlas.UserAuthToken, error) { return "hunter2", nil }})
	t.Cleanup(s.Close)
	if _, err := s.Credential(t.Context()); err == nil || s.Refused() != i.refused {
		t.Fatalf("the login ended with %v, refused: %t", err, s.Refused())
	}
	return s
}

// TestRefused checks that no call can succeed only if every rule is for a profile and Atlas refuses
// all profiles.
func TestRefused(t *testing.T) {
	const acme = "{dns_san: a.internal, allow: [CreateToken], profile: acme}"
	const other = "{dns_san: b.internal, allow: [CreateToken], profile: other}"
	const own = "{dns_san: c.internal, allow: [CreateToken], profile: passthrough}"
	policy := func(rules ...string) *auth.Policy {
		text := "profiles:\n  acme: {userauthtoken_file: /a}\n"
		if slices.Contains(rules, other) {
			text += "  other: {userauthtoken_file: /b}\n"
		}
		return mustPolicy(t, text+"callers:\n- "+strings.Join(rules, "\n- ")+"\n")
	}
	refused, down := source(t, identity{refused: true}), source(t, identity{})
	for name, tc := range map[string]struct {
		cfg  auth.Config
		want bool
	}{
		"no policy":                     {auth.Config{}, false},
		"a default profile":             {auth.Config{Policy: anyCertificate.Policy, Sources: auth.Sources{"default": refused}}, true},
		"a default profile, Atlas down": {auth.Config{Policy: anyCertificate.Policy, Sources: auth.Sources{"default": down}}, false},
		"one profile":                   {auth.Config{Policy: policy(acme), Sources: auth.Sources{"acme": refused}}, true},
		"all profiles":                  {auth.Config{Policy: policy(acme, other), Sources: auth.Sources{"acme": refused, "other": refused}}, true},
		"one of two profiles":           {auth.Config{Policy: policy(acme, other), Sources: auth.Sources{"acme": refused, "other": down}}, false},
		"beside callers with their own": {auth.Config{Policy: policy(acme, own), Sources: auth.Sources{"acme": refused}}, false},
		"a policy without a profile":    {auth.Config{Policy: mustPolicy(t, "callers: ["+own+"]")}, false},
	} {
		a := newAuthenticator(t, tc.cfg)
		if got := a.Refused(); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
		var said []string
		for _, c := range a.Checks() {
			if c.Err == nil || !strings.HasPrefix(c.Err.Error(), c.Name+": ") || strings.Contains(c.Err.Error(), "hunter2") {
				t.Errorf("%s: %s: %v", name, c.Name, c.Err)
			}
			said = append(said, c.Name)
		}
		if !slices.IsSorted(said) || len(said) != len(tc.cfg.Sources) || (a.Check() == nil) != (len(said) == 0) {
			t.Errorf("%s: checked are %q, and the whole is %v", name, said, a.Check())
		}
		for profile, status := range a.Profiles() {
			if status.Refused != (tc.cfg.Sources[profile] == refused) {
				t.Errorf("%s: profile %s: %+v", name, profile, status)
			}
		}
		if len(a.Profiles()) != len(tc.cfg.Sources) {
			t.Errorf("%s: %d profiles", name, len(a.Profiles()))
		}
	}
}
