package auth_test

import (
	"crypto"
	"crypto/x509"
	"errors"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/ForstaLabs/ephemeral-token-service/server/auth"
	"github.com/ForstaLabs/ephemeral-token-service/server/auth/authtest"
)

// TestTransportSetRoots: an issuer is believed as soon as its authority is there, and asked nothing more when that is gone.
func TestTransportSetRoots(t *testing.T) {
	issuer := authtest.NewIssuer(t)
	first, second := authtest.NewKey(t), authtest.NewKey(t)
	issuer.Publish(map[string]crypto.Signer{"1": first})
	trusted := x509.NewCertPool()
	trusted.AddCert(issuer.Certificate())
	transport := auth.NewTransport(x509.NewCertPool())
	a := newAuthenticator(t, auth.Config{Policy: mustPolicy(t, oidcPolicy(issuer.URL)), HTTPClient: &http.Client{Transport: transport}}.Impatient(time.Millisecond, 0))
	old := authtest.Sign(t, jwt.SigningMethodES256, "1", first, issuer.Claims(nil))
	if _, err := create(t.Context(), a, old); !errors.Is(err, auth.ErrCallerCheckUnavailable) {
		t.Errorf("not trusted: %v", err)
	}
	transport.SetRoots(trusted)
	untilReady(t, a)
	becomes(t, a, old, nil)
	transport.SetRoots(x509.NewCertPool())
	issuer.Publish(map[string]crypto.Signer{"2": second})
	fresh := authtest.Sign(t, jwt.SigningMethodES256, "2", second, issuer.Claims(nil))
	if _, err := create(t.Context(), a, fresh); !errors.Is(err, auth.ErrCallerCheckUnavailable) {
		t.Errorf("trusted no longer: %v", err)
	}
	transport.SetRoots(trusted)
	becomes(t, a, fresh, nil)
}

// TestTransportUnderLoad: no request fails while the authorities are replaced.
func TestTransportUnderLoad(t *testing.T) {
	issuer := authtest.NewIssuer(t)
	trusted := x509.NewCertPool()
	trusted.AddCert(issuer.Certificate())
	transport := auth.NewTransport(trusted)
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	var load sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		load.Go(func() {
			for n := 0; ; n++ {
				resp, err := client.Get(issuer.URL + authtest.PathKeys)
				if err != nil {
					t.Error(err)
					return
				}
				_ = resp.Body.Close()
				select {
				case <-stop:
					if n == 0 {
						t.Error("there was no load")
					}
					return
				default:
				}
			}
		})
	}
	for range 50 {
		transport.SetRoots(trusted)
		<-time.After(time.Millisecond)
	}
	close(stop)
	load.Wait()
}

// TestAllowsWithoutCertificate: it goes by the policy in force.
func TestAllowsWithoutCertificate(t *testing.T) {
	const (
		certificate = "callers: [{dns_san: a.internal, allow: [CreateToken], profile: passthrough}]"
		atlasJWT    = "callers: [{dns_san: a.internal, allow: [CreateToken], profile: passthrough}, {atlas_jwt: true, allow: [CreateToken], profile: passthrough}]"
	)
	issuer := authtest.NewIssuer(t)
	a := newAuthenticator(t, auth.Config{Policy: mustPolicy(t, certificate), HTTPClient: issuer.Client()})
	for _, step := range []struct {
		policy string
		want   bool
	}{{certificate, false}, {atlasJWT, true}, {certificate, false}, {oidcPolicy(issuer.URL), true}} {
		if err := a.SetPolicy(mustPolicy(t, step.policy)); err != nil {
			t.Fatal(err)
		}
		if got := a.AllowsWithoutCertificate(); got != step.want {
			t.Errorf("%s: %t", step.policy, got)
		}
	}
	if auth.PassThrough().AllowsWithoutCertificate() || newAuthenticator(t, auth.Config{DefaultProfile: "acme"}).AllowsWithoutCertificate() {
		t.Error("a certificate is not demanded where there is no policy")
	}
}
