package atlas_test

import (
	"crypto/x509"
	"errors"
	"sync"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

// TestSetTLS: the authorities are replaced over and over under load and no call fails; once Atlas's
// is gone, none succeeds.
func TestSetTLS(t *testing.T) {
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
	jwt := atlas.JWT(em.Org(0).JWT())

	stop := make(chan struct{})
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := client.CreateEphemeralToken(t.Context(), jwt); err != nil {
					t.Errorf("while the authorities are replaced: %v", err)
					return
				}
			}
		})
	}
	for range 50 {
		before := em.Calls(emulator.Create)
		client.SetTLS(em.CertPool(), nil)
		for em.Calls(emulator.Create) < before+8 && !t.Failed() {
			if _, err := client.CreateEphemeralToken(t.Context(), jwt); err != nil {
				t.Errorf("right after a replacement: %v", err)
			}
		}
	}
	close(stop)
	callers.Wait()

	client.SetTLS(x509.NewCertPool(), nil)
	_, err = client.CreateEphemeralToken(t.Context(), jwt)
	var e *atlas.Error
	if !errors.As(err, &e) || e.Kind != atlas.KindTLS {
		t.Errorf("without Atlas's authority: %v, want a TLS error", err)
	}
	client.SetTLS(em.CertPool(), nil)
	if _, err := client.CreateEphemeralToken(t.Context(), jwt); err != nil {
		t.Errorf("with it again: %v", err)
	}
}
