package auth_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/ForstaLabs/ephemeral-token-service/server/auth"
	"github.com/ForstaLabs/ephemeral-token-service/server/auth/authtest"
)

// TestSetPolicy: issuers come and go with the policy, and one that stays keeps its keys.
func TestSetPolicy(t *testing.T) {
	one, two := authtest.NewIssuer(t), authtest.NewIssuer(t)
	key := authtest.NewKey(t)
	pool := x509.NewCertPool()
	for _, i := range []*authtest.Issuer{one, two} {
		i.Publish(map[string]crypto.Signer{"k": key})
		pool.AddCert(i.Certificate())
	}
	client := one.Client()
	client.Transport.(*http.Transport).TLSClientConfig.RootCAs = pool
	a := newAuthenticator(t, auth.Config{Policy: mustPolicy(t, oidcPolicy(one.URL)), HTTPClient: client}.Impatient(time.Millisecond, 0))
	untilReady(t, a)
	tokenOne := authtest.Sign(t, jwt.SigningMethodES256, "k", key, one.Claims(nil))
	tokenTwo := authtest.Sign(t, jwt.SigningMethodES256, "k", key, two.Claims(nil))
	both := oidcPolicy(one.URL) + fmt.Sprintf("  - {oidc: {issuer: %q, audience: tokend, subject: ci-42}, allow: [CreateToken], profile: acme}\n", two.URL)

	for _, step := range []struct {
		name, policy string
		one, two     error
	}{
		{"the first", "", nil, auth.ErrCallerRejected},
		{"both", both, nil, nil},
		{"the first stays", oidcPolicy(one.URL), nil, auth.ErrCallerRejected},
		{"the second comes back", both, nil, nil},
		{"the second only", oidcPolicy(two.URL), auth.ErrCallerRejected, nil},
		{"another audience", strings.Replace(oidcPolicy(two.URL), "tokend", "other", 1), auth.ErrCallerRejected, auth.ErrCallerRejected},
	} {
		if step.policy != "" {
			if err := a.SetPolicy(mustPolicy(t, step.policy)); err != nil {
				t.Fatal(err)
			}
			untilReady(t, a)
		}
		if _, err := create(t.Context(), a, tokenOne); !errors.Is(err, step.one) {
			t.Errorf("%s: issuer one: %v, want %v", step.name, err, step.one)
		}
		if _, err := create(t.Context(), a, tokenTwo); !errors.Is(err, step.two) {
			t.Errorf("%s: issuer two: %v, want %v", step.name, err, step.two)
		}
	}
	if n := one.Fetches(); n != 1 {
		t.Errorf("the first issuer's keys were fetched %d times, want once", n)
	}
	if err := a.SetPolicy(nil); err == nil {
		t.Error("no policy replaced a policy")
	}
}

// TestSetPolicyUnderLoad: no call of a caller that both policies let in fails.
func TestSetPolicyUnderLoad(t *testing.T) {
	issuer := authtest.NewIssuer(t)
	key := authtest.NewKey(t)
	issuer.Publish(map[string]crypto.Signer{"k": key})
	policies := []*auth.Policy{mustPolicy(t, oidcPolicy(issuer.URL)), mustPolicy(t, testPolicy(issuer.URL, true))}
	a := newAuthenticator(t, auth.Config{Policy: policies[0], HTTPClient: issuer.Client()})
	untilReady(t, a)
	token := authtest.Sign(t, jwt.SigningMethodES256, "k", key, issuer.Claims(nil))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := create(t.Context(), a, token); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 500 {
		if err := a.SetPolicy(policies[i%2]); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	wg.Wait()
}
