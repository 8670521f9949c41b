package auth_test

import (
	"crypto"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth/authtest"
)

// TestRootCAsReplaced checks that an issuer is trusted as soon as its authority is, and no longer
// than that.
func TestRootCAsReplaced(t *testing.T) {
	issuer := authtest.NewIssuer(t)
	first, second := authtest.NewKey(t), authtest.NewKey(t)
	issuer.Publish(map[string]crypto.Signer{"1": first})
	var roots atomic.Pointer[x509.CertPool]
	roots.Store(x509.NewCertPool())
	var logged syncBuffer
	a := newAuthenticator(t, auth.Config{
		Policy: mustPolicy(t, oidcPolicy(issuer.URL)), RootCAs: roots.Load, Logger: slog.New(slog.NewTextHandler(&logged, nil)),
	}.Impatient(time.Millisecond, 0))
	old := authtest.Sign(t, jwt.SigningMethodES256, "1", first, issuer.Claims(nil))
	if _, err := create(t.Context(), a, old); !errors.Is(err, auth.ErrCallerCheckUnavailable) {
		t.Errorf("not trusted: %v", err)
	}
	roots.Store(issuer.RootCAs())
	untilReady(t, a)
	becomes(t, a, old, nil)
	roots.Store(x509.NewCertPool())
	issuer.Publish(map[string]crypto.Signer{"2": second})
	fresh := authtest.Sign(t, jwt.SigningMethodES256, "2", second, issuer.Claims(nil))
	becomes(t, a, fresh, auth.ErrCallerCheckUnavailable)
	if n := issuer.Fetches(); n != 1 {
		t.Errorf("the issuer was asked %d times for its keys, want once", n)
	}
	if _, err := create(t.Context(), a, old); err != nil {
		t.Errorf("a key that was fetched while it was trusted: %v", err)
	}
	roots.Store(issuer.RootCAs())
	becomes(t, a, fresh, nil)
	// It may have been trusted before the first request.
	if lost, ready := strings.Count(logged.String(), "cannot be used"), strings.Count(logged.String(), "is ready"); lost < 1 || lost > 2 || ready != 2 {
		t.Errorf("logged as lost %d times and as ready %d times:\n%s", lost, ready, logged.String())
	}
}

// TestAllowsWithoutCertificate checks that the policy in force counts.
func TestAllowsWithoutCertificate(t *testing.T) {
	const (
		certificate = "callers: [{dns_san: a.internal, allow: [CreateToken], profile: passthrough}]"
		atlasJWT    = "callers: [{dns_san: a.internal, allow: [CreateToken], profile: passthrough}, {atlas_jwt: true, allow: [CreateToken], profile: passthrough}]"
	)
	issuer := authtest.NewIssuer(t)
	a := newAuthenticator(t, auth.Config{Policy: mustPolicy(t, certificate), RootCAs: issuer.RootCAs})
	for _, step := range []struct {
		policy string
		want   bool
	}{{certificate, false}, {atlasJWT, true}, {certificate, false}, {oidcPolicy(issuer.URL), true}} {
		if err := setPolicy(a, mustPolicy(t, step.policy)); err != nil {
			t.Fatal(err)
		}
		if got := a.AllowsWithoutCertificate(); got != step.want {
			t.Errorf("%s: %t", step.policy, got)
		}
	}
	if auth.NewPassThrough().AllowsWithoutCertificate() || newAuthenticator(t, anyCertificate).AllowsWithoutCertificate() {
		t.Error("a certificate is not demanded where there is no policy")
	}
}
