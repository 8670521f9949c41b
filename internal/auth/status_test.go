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

// provider is an Atlas that refuses logins, or is down.
type provider struct{ refusal string } // empty: it is down

func (p provider) LogIn(context.Context, atlas.UserAuthToken) (atlas.JWT, error) {
	if p.refusal != "" {
		return "", &atlas.Error{Op: atlas.OpLogIn, Kind: atlas.KindStatus, StatusCode: http.StatusUnauthorized, Sent: true, Err: errors.New(p.refusal)}
	}
	return "", &atlas.Error{Op: atlas.OpLogIn, Kind: atlas.KindUnreachable, Err: errors.New("down")}
}

func (provider) RefreshJWT(context.Context, atlas.JWT) (atlas.JWT, error) { panic("there is none") }

// identity returns one that has tried to log in.
func identity(t *testing.T, p provider) *atlas.Identity {
	t.Helper()
	i := atlas.NewIdentity(atlas.IdentityConfig{Client: p, Profile: "p", Secret: func() atlas.UserAuthToken { return "hunter2" }})
	t.Cleanup(i.Close)
	if _, err := i.Credential(t.Context()); err == nil || i.Status().Refused != (p.refusal != "") {
		t.Fatalf("the login ended with %v, refused: %t", err, i.Status().Refused)
	}
	return i
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
	refused, down := identity(t, provider{"refused"}), identity(t, provider{})
	for name, tc := range map[string]struct {
		cfg  auth.Config
		want bool
	}{
		"no policy":                     {auth.Config{}, false},
		"a default profile":             {auth.Config{Policy: anyCertificate.Policy, Identities: auth.Identities{"default": refused}}, true},
		"a default profile, Atlas down": {auth.Config{Policy: anyCertificate.Policy, Identities: auth.Identities{"default": down}}, false},
		"one profile":                   {auth.Config{Policy: policy(acme), Identities: auth.Identities{"acme": refused}}, true},
		"all profiles":                  {auth.Config{Policy: policy(acme, other), Identities: auth.Identities{"acme": refused, "other": refused}}, true},
		"one of two profiles":           {auth.Config{Policy: policy(acme, other), Identities: auth.Identities{"acme": refused, "other": down}}, false},
		"beside callers with their own": {auth.Config{Policy: policy(acme, own), Identities: auth.Identities{"acme": refused}}, false},
		"a policy without a profile":    {auth.Config{Policy: mustPolicy(t, "callers: ["+own+"]")}, false},
	} {
		a := newAuthenticator(t, tc.cfg)
		if got := a.Refused(); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
		if err := a.Check(); (err == nil) != (len(tc.cfg.Identities) == 0) || err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
		for profile, status := range a.Profiles() {
			if status.Refused != (tc.cfg.Identities[profile] == refused) {
				t.Errorf("%s: profile %s: %+v", name, profile, status)
			}
		}
		if len(a.Profiles()) != len(tc.cfg.Identities) {
			t.Errorf("%s: %d profiles", name, len(a.Profiles()))
		}
	}
}
