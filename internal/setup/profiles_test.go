package setup

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

// replaceablePolicy is a policy that a test replaces, with an Atlas.
type replaceablePolicy struct {
	*Setup
	atlas   *emulator.Emulator
	client  *atlas.Client
	secrets []string // files, of the emulator's orgs
	dir     string
}

func newReplaceablePolicy(t *testing.T, first func(*replaceablePolicy) string) *replaceablePolicy {
	t.Helper()
	em, err := emulator.Start(emulator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	client, err := atlas.New(atlas.Config{BaseURL: em.URL(), RootCAs: em.CertPool()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	s := &Setup{Settings: Settings{PolicyFile: "policy.yaml", TLSClientCAFile: "ca.pem"}, log: slog.New(slog.DiscardHandler)}
	s.profiles = &profiles{client: client, log: s.log, files: &reload.Watcher{}, warn: s.warn}
	c := &replaceablePolicy{Setup: s, atlas: em, client: client, dir: t.TempDir()}
	for i := range 2 {
		file := filepath.Join(c.dir, fmt.Sprint(i))
		if err := os.WriteFile(file, []byte(em.Org(i).UserAuthToken()), 0o600); err != nil {
			t.Fatal(err)
		}
		c.secrets = append(c.secrets, file)
	}
	v, err := c.parsePolicy([][]byte{[]byte(first(c))})
	if err != nil {
		t.Fatal(err)
	}
	if s.authenticate(v.policy, v.profiles); s.Err() != nil {
		t.Fatal(s.Err())
	}
	t.Cleanup(func() {
		s.Config.Auth.Close()
		s.profiles.Close()
	})
	return c
}

// onlyProfile is a policy with one profile, for the one caller.
func (c *replaceablePolicy) onlyProfile(profile string, org int) string {
	return fmt.Sprintf("profiles:\n  %s: {userauthtoken_file: %q}\ncallers:\n  - {dns_san: web.internal, allow: [CreateToken], profile: %s}\n", profile, c.secrets[org], profile)
}

func (c *replaceablePolicy) replace(policy string) error {
	v, err := c.parsePolicy([][]byte{[]byte(policy)})
	if err != nil {
		return err
	}
	return c.usePolicy(v)
}

// grant is that of a call by the one caller.
func (c *replaceablePolicy) grant(ctx context.Context) (auth.Grant, error) {
	leaf := &x509.Certificate{DNSNames: []string{"web.internal"}, NotAfter: time.Now().Add(time.Hour)}
	state := tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{leaf}}}
	return c.Config.Auth.Authenticate(peer.NewContext(ctx, &peer.Peer{AuthInfo: credentials.TLSInfo{State: state}}), "CreateToken")
}

// token goes on with a granted call as the service does.
func (c *replaceablePolicy) token(ctx context.Context, grant auth.Grant) (atlas.Token, error) {
	cred, err := grant.Identity.Credential(ctx)
	if err != nil {
		return "", err
	}
	return atlas.WithReLogin(ctx, cred, c.client.CreateEphemeralToken)
}

// TestProfilesUnderLoad checks that each call gets the token of the profile that it was granted.
func TestProfilesUnderLoad(t *testing.T) {
	t.Parallel()
	c := newReplaceablePolicy(t, func(c *replaceablePolicy) string { return c.onlyProfile("p0-0", 0) })
	tokens := map[string]atlas.Token{} // by the end of the profile's name
	for i := range c.secrets {
		token, err := c.client.CreateEphemeralToken(t.Context(), atlas.JWT(c.atlas.Org(i).JWT()))
		if err != nil {
			t.Fatal(err)
		}
		tokens[fmt.Sprint(i)] = token
	}
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	for i := range 4 {
		load.Go(func() {
			identities := map[*atlas.Identity]bool{}
			for ctx.Err() == nil {
				grant, err := c.grant(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				identities[grant.Identity] = true
				if i%2 == 0 {
					continue // no call of Atlas, so that many fall between two steps of a replacement
				}
				_, org, _ := strings.Cut(grant.Profile, "-")
				token, err := c.token(t.Context(), grant)
				if err != nil || token != tokens[org] {
					t.Errorf("profile %s: %v; the token of its org: %t", grant.Profile, err, token == tokens[org])
					return
				}
			}
			if len(identities) < 3 {
				t.Errorf("a caller met %d identities only", len(identities))
			}
		})
	}
	for i := range 300 {
		if err := c.replace(c.onlyProfile(fmt.Sprintf("p%d-%d", i/4, i%2), i%2)); err != nil { // another name, another file, in turn
			t.Error(err)
		}
		<-time.After(time.Millisecond)
	}
	stop()
	load.Wait()
}

// TestCallOutlivesItsProfile checks that a call that began under a replaced policy still uses the
// identity that it was granted, until the service ends.
func TestCallOutlivesItsProfile(t *testing.T) {
	t.Parallel()
	for name, next := range map[string]func(*replaceablePolicy) string{
		"gone":         func(c *replaceablePolicy) string { return c.onlyProfile("two", 1) },
		"another file": func(c *replaceablePolicy) string { return c.onlyProfile("one", 1) },
		"passthrough": func(*replaceablePolicy) string {
			return "callers: [{dns_san: web.internal, allow: [CreateToken], profile: passthrough}]"
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newReplaceablePolicy(t, func(c *replaceablePolicy) string { return c.onlyProfile("one", 0) })
			began, err := c.grant(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			gone := c.profiles.inUse[profileKey{"one", c.secrets[0]}]
			if err := c.replace(next(c)); err != nil {
				t.Fatal(err)
			}
			if token, err := c.token(t.Context(), began); err != nil || string(token) != c.atlas.Org(0).EphemeralToken() {
				t.Errorf("the call that had begun: %v", err)
			}
			began.Identity.Invalidate(currentJWT(t, began.Identity))
			if token, err := c.token(t.Context(), began); err != nil || string(token) != c.atlas.Org(0).EphemeralToken() {
				t.Errorf("after another login: %v", err)
			}
			if c.profiles.inUse[profileKey{"one", c.secrets[0]}] == gone {
				t.Error("it is still in use")
			}
			c.profiles.Close()
			if _, err := c.token(t.Context(), began); !errors.Is(err, atlas.ErrClosed) {
				t.Errorf("at the end: %v", err)
			}
		})
	}
}

func currentJWT(t *testing.T, identity *atlas.Identity) atlas.JWT {
	t.Helper()
	cred, err := identity.Credential(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return cred.JWT
}

// TestProfileKept checks that a profile with the same name and file stays logged in from one policy
// to the next, and that one that comes back is a new one.
func TestProfileKept(t *testing.T) {
	t.Parallel()
	c := newReplaceablePolicy(t, func(c *replaceablePolicy) string { return c.onlyProfile("one", 0) })
	identity := func() *atlas.Identity {
		t.Helper()
		grant, err := c.grant(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return grant.Identity
	}
	first := identity()
	for _, step := range []struct {
		policy string
		same   bool
	}{
		{c.onlyProfile("one", 0), true},
		{strings.Replace(c.onlyProfile("one", 0), "[CreateToken]", "[CreateToken, DeleteToken]", 1), true},
		{c.onlyProfile("one", 1), false},
		{c.onlyProfile("one", 0), false},
	} {
		if err := c.replace(step.policy); err != nil {
			t.Fatal(err)
		}
		if got := identity() == first; got != step.same {
			t.Errorf("after\n%s\nthe same identity: %t", step.policy, got)
		}
	}
}

// TestWatchEndsWithProfile checks that the file of a retired profile is no longer read.
func TestWatchEndsWithProfile(t *testing.T) {
	t.Parallel()
	c := newReplaceablePolicy(t, func(c *replaceablePolicy) string { return c.onlyProfile("one", 0) })
	gone := c.profiles.inUse[profileKey{"one", c.secrets[0]}]
	if err := c.replace(c.onlyProfile("two", 1)); err != nil {
		t.Fatal(err)
	}
	kept := c.profiles.inUse[profileKey{"two", c.secrets[1]}]
	for _, file := range c.secrets {
		if err := os.WriteFile(file, []byte("another"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.profiles.files.Look()
	if kept.secret.Get() != "another" {
		t.Error("the new secret is not taken")
	}
	if gone.secret.Get() == "another" {
		t.Error("the file of a profile that is gone is still watched")
	}
}

// TestPolicyRefusedWhole checks that a policy with one unreadable secret changes nothing.
func TestPolicyRefusedWhole(t *testing.T) {
	t.Parallel()
	c := newReplaceablePolicy(t, func(c *replaceablePolicy) string { return c.onlyProfile("one", 0) })
	before, err := c.grant(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(c.dir, "missing")
	policy := fmt.Sprintf(`profiles:
  one: {userauthtoken_file: %q}
  two: {userauthtoken_file: %q}
callers:
  - {dns_san: web.internal, allow: [CreateToken], profile: one}
  - {dns_san: other.internal, allow: [CreateToken], profile: two}
`, c.secrets[1], missing)
	if err := c.replace(policy); err == nil || !strings.HasPrefix(err.Error(), "policy.yaml:3: profile two: ") {
		t.Errorf("got %v, want the line and the profile", err)
	}
	if after, err := c.grant(t.Context()); err != nil || after != before {
		t.Errorf("the policy in force is no longer the old one: %+v, %v", after, err)
	}
	if c.profiles.inUse[profileKey{"one", c.secrets[0]}] == nil || len(c.profiles.inUse) != 1 || len(c.profiles.opened) != 1 {
		t.Errorf("there are %d profiles, %d opened, want the old one", len(c.profiles.inUse), len(c.profiles.opened))
	}
	if err := os.WriteFile(missing, []byte(c.atlas.Org(1).UserAuthToken()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.replace(policy); err != nil {
		t.Errorf("when the secret is there: %v", err)
	}
}
