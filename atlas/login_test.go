package atlas

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

func TestLogInAndRefresh(t *testing.T) {
	em, err := emulator.Start(emulator.Config{RefreshWindow: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	client, err := New(Config{BaseURL: em.URL(), RootCAs: em.CertPool()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	org := em.Org(0)

	jwt, err := client.LogIn(t.Context(), UserAuthToken(org.UserAuthToken()))
	if err != nil {
		t.Fatal(err)
	}
	claims := jwt.UnverifiedClaims()
	if claims.OrgID != org.ID || time.Until(claims.Expiry) <= 0 {
		t.Errorf("claims %+v", claims)
	}
	if refreshed, err := client.RefreshJWT(t.Context(), jwt); err != nil || refreshed == jwt {
		t.Errorf("refresh: the same JWT %v, error %v", refreshed == jwt, err)
	}
	if _, err := client.CreateEphemeralToken(t.Context(), jwt); err != nil {
		t.Errorf("create: %v", err)
	}

	old := JWT(org.MintJWT(emulator.JWT{Age: 2 * time.Hour}))
	for name, call := range map[string]func() error{
		"a wrong secret":       func() error { _, err := client.LogIn(t.Context(), "planted"); return err },
		"past the window":      func() error { _, err := client.RefreshJWT(t.Context(), old); return err },
		"an unreadable answer": func() error { return malformedLogin(t, em, client) },
	} {
		err := call()
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%s: got %v, want an *Error", name, err)
			continue
		}
		if name != "an unreadable answer" && (e.Kind != KindStatus || e.StatusCode != 400) {
			t.Errorf("%s: got %v, want status 400", name, err)
		}
		if strings.Contains(err.Error(), "planted") || strings.Contains(err.Error(), string(old)) {
			t.Errorf("%s: the error has a secret in it", name)
		}
	}
}

func malformedLogin(t *testing.T, em *emulator.Emulator, client *Client) error {
	t.Helper()
	defer em.Inject(emulator.Fault{On: emulator.Login, Status: 200, Body: `{"token": "planted"}`})()
	_, err := client.LogIn(t.Context(), "x")
	var e *Error
	if errors.As(err, &e) && e.Kind != KindInvalidResponse {
		t.Errorf("a login answer without a JWT: %v, want an invalid response", err)
	}
	return err
}

// TestTokenSourceHeals: Atlas has dropped every JWT; the next call logs in and succeeds.
func TestTokenSourceHeals(t *testing.T) {
	em, err := emulator.Start(emulator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	client, err := New(Config{BaseURL: em.URL(), RootCAs: em.CertPool()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	source := NewTokenSource(TokenSourceConfig{
		Client: client,
		Secret: func() (UserAuthToken, error) { return UserAuthToken(em.Org(0).UserAuthToken()), nil },
	})
	t.Cleanup(source.Close)
	for range 2 {
		cred, err := source.Credential(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := WithReLogin(t.Context(), cred, client.CreateEphemeralToken); err != nil {
			t.Fatal(err)
		}
		em.Org(0).RevokeJWTs()
	}
	if n := em.Calls(emulator.Login); n != 2 {
		t.Errorf("%d logins, want 2", n)
	}
}
