package server_test

import (
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
)

const (
	certificatePolicy = `callers: [{dns_san: client.test, allow: [CreateToken], profile: passthrough}]`
	atlasJWTPolicy    = `callers: [{dns_san: client.test, allow: [CreateToken], profile: passthrough}, {atlas_jwt: true, allow: [CreateToken], profile: passthrough}]`
)

// TestCertificateDemanded: where there is an authority for client certificates, each caller has to show one, unless the
// policy can let in a caller without.
func TestCertificateDemanded(t *testing.T) {
	for name, start := range map[string]func(*testing.T) *service{
		"pass-through":          func(t *testing.T) *service { return startService(t, mutualTLS) },
		"default profile":       func(t *testing.T) *service { return startIdentity(t, "").service },
		"certificate rule only": func(t *testing.T) *service { return startIdentity(t, certificatePolicy).service },
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			notCalled(t, s.atlas)
			s.checkNoHandshake(t, nil)
			for _, c := range s.callersAs(t, nil) {
				wantNoHandshake(t, c.call(testContext(t), create, credential(s.atlas)...))
			}
		})
	}
	t.Run("rule for an Atlas JWT", func(t *testing.T) {
		s := startIdentity(t, atlasJWTPolicy)
		s.checkNoHandshake(t, &s.certs.untrusted)
		for _, c := range s.callersAs(t, nil) {
			wantCreated.check(t, c.call(testContext(t), create, credential(s.atlas)...))
			wantMissing.check(t, c.call(testContext(t), create))
			wantNotPermitted.check(t, c.call(testContext(t), remove, credential(s.atlas)...))
		}
		for _, c := range s.callers(t) {
			wantCreated.check(t, c.call(testContext(t), create, credential(s.atlas)...))
		}
	})
}

// TestCertificateDemandedByNewPolicy: a replaced policy counts from the next connection, and on those that are open a caller
// without a certificate is nobody.
func TestCertificateDemandedByNewPolicy(t *testing.T) {
	s := startIdentity(t, atlasJWTPolicy)
	set := func(policy string) {
		t.Helper()
		if err := s.auth.SetPolicy(mustPolicy(t, policy), auth.Sources{"acme": s.source}); err != nil {
			t.Fatal(err)
		}
	}
	open := s.callersAs(t, nil)
	for _, c := range open {
		wantCreated.check(t, c.call(testContext(t), create, credential(s.atlas)...))
	}
	set(certificatePolicy)
	for _, c := range open {
		wantMissing.check(t, c.call(testContext(t), create))
		wantUnknownCaller.check(t, c.call(testContext(t), create, credential(s.atlas)...))
	}
	s.checkNoHandshake(t, nil)
	set(atlasJWTPolicy)
	for _, c := range s.callersAs(t, nil) {
		wantCreated.check(t, c.call(testContext(t), create, credential(s.atlas)...))
	}
	s.checkNoHandshake(t, &s.certs.untrusted)
}
