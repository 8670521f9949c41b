package server_test

import (
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

const (
	certificatePolicy = `callers: [{dns_san: client.test, allow: [CreateToken], profile: passthrough}]`
	atlasJWTPolicy    = `callers: [{dns_san: client.test, allow: [CreateToken], profile: passthrough}, {atlas_jwt: true, allow: [CreateToken], profile: passthrough}]`
)

// TestCertificateDemanded checks that with a client CA every caller must present a certificate,
// unless the policy can admit a caller without one.
func TestCertificateDemanded(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(*testing.T) *testutil.Service{
		"pass-through":          func(t *testing.T) *testutil.Service { return testutil.Start(t, testutil.MutualTLS) },
		"default profile":       func(t *testing.T) *testutil.Service { return testutil.StartIdentity(t, "").Service },
		"certificate rule only": func(t *testing.T) *testutil.Service { return testutil.StartIdentity(t, certificatePolicy).Service },
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			testutil.NotCalled(t, s.Atlas)
			s.CheckNoHandshake(t, nil)
			for _, c := range s.CallersAs(t, nil) {
				testutil.WantNoHandshake(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
			}
		})
	}
	t.Run("rule for an Atlas JWT", func(t *testing.T) {
		s := testutil.StartIdentity(t, atlasJWTPolicy)
		s.CheckNoHandshake(t, &s.Certs.Untrusted)
		for _, c := range s.CallersAs(t, nil) {
			testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
			testutil.WantMissing.Check(t, c.Call(testutil.Context(t), testutil.Create))
			testutil.WantNotPermitted.Check(t, c.Call(testutil.Context(t), testutil.Delete, testutil.Credential(s.Atlas)...))
		}
		for _, c := range s.Callers(t) {
			testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
		}
	})
}

// TestCertificateDemandedByNewPolicy checks that a new policy applies to new connections, and that
// callers without a certificate on open connections are unauthenticated.
func TestCertificateDemandedByNewPolicy(t *testing.T) {
	t.Parallel()
	s := testutil.StartIdentity(t, atlasJWTPolicy)
	set := func(policy string) {
		t.Helper()
		if err := s.Auth.SetPolicy(testutil.MustPolicy(t, policy), auth.Identities{"acme": s.Identity}); err != nil {
			t.Fatal(err)
		}
	}
	open := s.CallersAs(t, nil)
	for _, c := range open {
		testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
	}
	set(certificatePolicy)
	for _, c := range open {
		testutil.WantMissing.Check(t, c.Call(testutil.Context(t), testutil.Create))
		testutil.WantUnknownCaller.Check(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
	}
	s.CheckNoHandshake(t, nil)
	set(atlasJWTPolicy)
	for _, c := range s.CallersAs(t, nil) {
		testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
	}
	s.CheckNoHandshake(t, &s.Certs.Untrusted)
}
