package tokencache

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

// TestReLoginToAnotherOrg replaces a profile's secret by one of another org. The call that finds
// out continues for the new org, and neither org gets the token of the other.
func TestReLoginToAnotherOrg(t *testing.T) {
	em, err := emulator.Start(emulator.Config{Orgs: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	client, err := atlas.New(atlas.Config{BaseURL: em.URL(), RootCAs: em.CertPool()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	var org atomic.Int32
	identity := atlas.NewIdentity(atlas.IdentityConfig{
		Client: client, Profile: "acme",
		Secret: func() atlas.UserAuthToken {
			return atlas.UserAuthToken(em.Org(int(org.Load())).UserAuthToken())
		},
	})
	t.Cleanup(identity.Close)
	c, err := New(client, Config{TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)

	// change makes the identity one of the other org, and returns the credential that a call had
	// just before.
	change := func() atlas.Credential {
		cred, err := identity.Credential(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		em.Org(int(org.Load())).RevokeJWTs()
		org.Store(1 - org.Load())
		identity.SecretChanged()
		return cred
	}
	var tokens []atlas.Token
	for range 4 {
		result, err := c.Create(t.Context(), change(), true)
		if want := em.Org(int(org.Load())).ID; err != nil || result.Org != want {
			t.Errorf("create: a token of org %s, %v; want %s", result.Org, err, want)
		}
		tokens = append(tokens, result.Token)
	}
	if tokens[0] == tokens[1] || tokens[0] != tokens[2] || tokens[1] != tokens[3] {
		t.Error("one org got the other's token")
	}
	if got, err := c.Delete(t.Context(), change()); err != nil || got != em.Org(int(org.Load())).ID {
		t.Errorf("delete: of org %s, %v", got, err)
	}
}
