package main

// Inside the package, so that a policy can be replaced more often than files are looked at.

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
	"github.com/ForstaLabs/ephemeral-token-service/server/auth"
)

// changing is a policy that a test replaces, with an Atlas.
type changing struct {
	*policyFile
	atlas   *emulator.Emulator
	client  *atlas.Client
	auth    *auth.Authenticator
	secrets []string // files, of the emulator's orgs
	dir     string
}

func newChanging(t *testing.T, grace time.Duration, first func(*changing) string) *changing {
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
	profiles := newProfiles(client, grace, slog.New(slog.DiscardHandler))
	c := &changing{policyFile: &policyFile{path: "policy.yaml", mutual: true, profiles: profiles}, atlas: em, client: client, dir: t.TempDir()}
	for i := range 2 {
		file := filepath.Join(c.dir, fmt.Sprint(i))
		if err := os.WriteFile(file, []byte(em.Org(i).UserAuthToken()), 0o600); err != nil {
			t.Fatal(err)
		}
		c.secrets = append(c.secrets, file)
	}
	v, err := c.parse([][]byte{[]byte(first(c))})
	if err != nil {
		t.Fatal(err)
	}
	profiles.add(v.profiles)
	if c.auth, err = auth.New(auth.Config{Policy: v.policy}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- profiles.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		profiles.Close()
		c.auth.Close()
	})
	return c
}

// only is a policy with one profile, for the one caller.
func (c *changing) only(profile string, org int) string {
	return fmt.Sprintf("profiles:\n  %s: {userauthtoken_file: %q}\ncallers:\n  - {dns_san: web.internal, allow: [CreateToken], profile: %s}\n", profile, c.secrets[org], profile)
}

func (c *changing) replace(policy string) error {
	v, err := c.parse([][]byte{[]byte(policy)})
	if err != nil {
		return err
	}
	return c.install(v, c.auth)
}

// grant is that of a call by the one caller.
func (c *changing) grant(ctx context.Context) (auth.Grant, error) {
	leaf := &x509.Certificate{DNSNames: []string{"web.internal"}}
	state := tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{leaf}}}
	return c.auth.Authenticate(peer.NewContext(ctx, &peer.Peer{AuthInfo: credentials.TLSInfo{State: state}}), "CreateToken")
}

// token goes on with a granted call as the service does.
func (c *changing) token(ctx context.Context, grant auth.Grant) (atlas.Token, error) {
	source, ok := c.profiles.Identity(grant)
	if !ok {
		return "", fmt.Errorf("profile %s has no Atlas identity", grant.Profile)
	}
	cred, err := source.Credential(ctx)
	if err != nil {
		return "", err
	}
	return atlas.WithReLogin(ctx, cred, c.client.CreateEphemeralToken)
}

// TestProfilesUnderLoad: whatever comes and goes, each call gets a token, and it is that of the identity which the policy
// granted it.
func TestProfilesUnderLoad(t *testing.T) {
	t.Parallel()
	c := newChanging(t, time.Minute, func(c *changing) string { return c.only("one", 0) })
	tokens := map[string]atlas.Token{}
	for i, file := range c.secrets {
		token, err := c.client.CreateEphemeralToken(t.Context(), atlas.JWT(c.atlas.Org(i).JWT()))
		if err != nil {
			t.Fatal(err)
		}
		tokens[file] = token
	}
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	for i := range 4 {
		load.Go(func() {
			identities := map[auth.Grant]bool{}
			for ctx.Err() == nil {
				grant, err := c.grant(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				identities[grant] = true
				if _, found := c.profiles.Identity(grant); !found {
					t.Errorf("profile %s is granted and is not there", grant.Profile)
					return
				}
				if i%2 == 0 {
					continue // no call of Atlas, so that many fall between two steps of a replacement
				}
				token, err := c.token(t.Context(), grant)
				if err != nil || token != tokens[grant.UserauthtokenFile] {
					t.Errorf("profile %s: %v; the token of its identity: %t", grant.Profile, err, token == tokens[grant.UserauthtokenFile])
					return
				}
			}
			if len(identities) < 3 {
				t.Errorf("a caller met %d identities only", len(identities))
			}
		})
	}
	for i := range 300 {
		if err := c.replace(c.only(fmt.Sprintf("p%d", i/2), i%2)); err != nil { // another name, another file, in turn
			t.Error(err)
		}
		<-time.After(time.Millisecond)
	}
	stop()
	load.Wait()
}

// TestCallOutlivesItsProfile: a call that began under a policy which is gone still logs in as whom that said, also where the
// name means somebody else by now. When no such call can be left, the identity is closed.
func TestCallOutlivesItsProfile(t *testing.T) {
	t.Parallel()
	for name, next := range map[string]func(*changing) string{
		"gone":         func(c *changing) string { return c.only("two", 1) },
		"another file": func(c *changing) string { return c.only("one", 1) },
		"passthrough": func(*changing) string {
			return "callers: [{dns_san: web.internal, allow: [CreateToken], profile: passthrough}]"
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newChanging(t, time.Hour, func(c *changing) string { return c.only("one", 0) })
			began, err := c.grant(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := c.replace(next(c)); err != nil {
				t.Fatal(err)
			}
			if token, err := c.token(t.Context(), began); err != nil || string(token) != c.atlas.Org(0).EphemeralToken() {
				t.Errorf("the call that had begun: %v", err)
			}
		})
	}
	t.Run("closed in the end", func(t *testing.T) {
		t.Parallel()
		c := newChanging(t, 20*time.Millisecond, func(c *changing) string { return c.only("one", 0) })
		began, err := c.grant(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		source, _ := c.profiles.Identity(began)
		if err := c.replace(c.only("one", 1)); err != nil {
			t.Fatal(err)
		}
		for start := time.Now(); ; <-time.After(time.Millisecond) {
			if _, found := c.profiles.Identity(began); !found {
				break
			}
			if time.Since(start) > 10*time.Second {
				t.Fatal("it is still there")
			}
		}
		if _, err := source.Credential(t.Context()); !errors.Is(err, atlas.ErrClosed) {
			t.Errorf("it is not closed: %v", err)
		}
		if err := c.replace(c.only("one", 0)); err != nil {
			t.Fatal(err)
		}
		if token, err := c.token(t.Context(), began); err != nil || string(token) != c.atlas.Org(0).EphemeralToken() {
			t.Errorf("when it is back: %v", err)
		}
	})
	t.Run("back in time", func(t *testing.T) {
		t.Parallel()
		c := newChanging(t, time.Hour, func(c *changing) string { return c.only("one", 0) })
		for _, org := range []int{1, 0} {
			if err := c.replace(c.only("one", org)); err != nil {
				t.Fatal(err)
			}
		}
		grant, err := c.grant(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		source, _ := c.profiles.Identity(grant)
		key := profileKey{grant.Profile, grant.UserauthtokenFile}
		// What the first one's end does later must not hit the one that came back.
		for p, timer := range c.profiles.retired {
			timer.Stop()
			c.profiles.end(key, p)
		}
		if again, _ := c.profiles.Identity(grant); again != source {
			t.Error("the end of a retired profile took another one away")
		}
		if _, err := c.token(t.Context(), grant); err != nil {
			t.Error(err)
		}
	})
}

// TestPolicyRefusedWhole: with one secret that cannot be read, nothing of a new policy counts.
func TestPolicyRefusedWhole(t *testing.T) {
	t.Parallel()
	c := newChanging(t, time.Hour, func(c *changing) string { return c.only("one", 0) })
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
	if n := len(c.profiles.known) + len(c.profiles.retired); n != 1 {
		t.Errorf("there are %d profiles, want the old one", n)
	}
	if err := os.WriteFile(missing, []byte(c.atlas.Org(1).UserAuthToken()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.replace(policy); err != nil {
		t.Errorf("when the secret is there: %v", err)
	}
}
