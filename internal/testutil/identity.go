package testutil

import (
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// IdentityService is a service that holds the Atlas identity of the emulator's first org, for
// callers with a client certificate, or for those in its policy.
type IdentityService struct {
	*Service
	Audit    *Buffer
	Auth     *auth.Authenticator
	Identity *atlas.Identity
}

// StartIdentity runs a service with an Atlas identity, and a policy unless it is empty.
func StartIdentity(t *testing.T, policy string) *IdentityService {
	t.Helper()
	return StartIdentityAt(t, policy, atlas.Clock{}, emulator.Config{})
}

// StartIdentityAt is StartIdentity with this clock and emulator.
func StartIdentityAt(t *testing.T, policy string, clock atlas.Clock, config emulator.Config) *IdentityService {
	t.Helper()
	cfg := auth.Config{Policy: auth.AnyCertificate(auth.Profile{Name: "acme"})}
	if policy != "" {
		cfg = auth.Config{Policy: MustPolicy(t, policy)}
	}
	return StartIdentityWith(t, cfg, clock, config)
}

// MustPolicy parses a policy.
func MustPolicy(t *testing.T, text string) *auth.Policy {
	t.Helper()
	policy, err := auth.ParsePolicy("policy.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return policy
}

// StartIdentityWith is StartIdentityAt with this authentication.
func StartIdentityWith(t *testing.T, cfg auth.Config, clock atlas.Clock, config emulator.Config) *IdentityService {
	t.Helper()
	em, err := emulator.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	client, err := atlas.New(atlas.Config{BaseURL: em.URL(), RootCAs: em.CertPool(), MaxConns: 8, Timeout: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	resilient := NewResilient(t, client)
	s := &IdentityService{Audit: &Buffer{}}
	s.Identity = atlas.NewIdentity(atlas.IdentityConfig{
		Client: resilient, Profile: "acme",
		Secret: func() atlas.UserAuthToken { return atlas.UserAuthToken(em.Org(0).UserAuthToken()) },
		Clock:  clock,
	})
	t.Cleanup(s.Identity.Close)
	cfg.Identities = auth.Identities{"acme": s.Identity}
	authenticator, err := auth.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(authenticator.Close)
	s.Auth = authenticator
	s.Service = StartWith(t, MutualTLS, em, func(c *server.Config, _ *atlas.Config) {
		c.CallCeiling = time.Minute
		c.Atlas, c.Auth = resilient, authenticator
		c.Audit = slog.New(slog.NewJSONHandler(s.Audit, nil))
	})
	return s
}

// Records returns the audit records, oldest first.
func (s *IdentityService) Records(t *testing.T) []map[string]any {
	t.Helper()
	var all []map[string]any
	for line := range strings.Lines(s.Audit.String()) {
		var record map[string]any
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatal(err)
		}
		all = append(all, record)
	}
	return all
}
