//go:build unix

package main_test

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Profiles come and go with the policy while callers call: a new profile that cannot be read leaves the old policy in force,
// until its secret is there; and no call fails on the way.
func TestProfilesComeAndGo(t *testing.T) {
	t.Parallel()
	certs, em := makeCertificates(t), startAtlas(t)
	first := writeFile(t, "first", []byte(em.Org(0).UserAuthToken()))
	second := filepath.Join(t.TempDir(), "second") // not there yet
	policy := func(profile, secret string) string {
		return fmt.Sprintf("profiles:\n  %s: {userauthtoken_file: %s}\ncallers:\n  - {dns_san: web.internal, allow: [CreateToken], profile: %s}\n", profile, secret, profile)
	}
	file := writeFile(t, "policy.yaml", []byte(policy("one", first)))
	s := invocation{args: []string{
		"--tls-cert-file=" + certs.serverCert, "--tls-key-file=" + certs.serverKey, "--tls-client-ca-file=" + certs.caFile,
		"--policy-file=" + file,
	}}.startServe(t, em)

	var load sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		client := newHTTPClient(t, &tls.Config{RootCAs: certs.pool, Certificates: []tls.Certificate{certs.client}})
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
				if got, err := do(client, newRequest(t, http.MethodPost, "https://"+s.http+restPath, "")); err != nil || got.token() == "" {
					t.Errorf("under load: %v, %d %s", err, got.status, got.body)
					return
				}
			}
		})
	}
	becomes := func(org int) {
		t.Helper()
		poll(t, fmt.Sprintf("the policy for org %d to be in force", org), func() bool {
			token := certificateCall(t, s, certs, http.MethodPost).token()
			return token != "" && token == em.Org(org).EphemeralToken()
		})
	}
	becomes(0)
	replace(t, file, policy("two", second))
	poll(t, "the missing secret to be reported", func() bool {
		return strings.Contains(s.stderr.String(), file+":2: profile two: ") && strings.Contains(s.stderr.String(), "the last good one stays")
	})
	becomes(0)
	replace(t, second, em.Org(1).UserAuthToken())
	becomes(1) // without another change of the policy
	replace(t, file, policy("two", first))
	becomes(0)
	replace(t, file, policy("one", second))
	becomes(1)
	close(stop)
	load.Wait()

	em.Org(1).RotateUserAuthToken()
	em.Org(1).RevokeJWTs()
	poll(t, "the dropped secret to be noticed", func() bool {
		return certificateCall(t, s, certs, http.MethodPost).status == http.StatusServiceUnavailable
	})
	if got := s.readyz(t); strings.Count(got, "profile ") != 1 || !strings.Contains(got, "profile one") {
		t.Errorf("/readyz says %q, want the one profile in force", got)
	}
	replace(t, second, em.Org(1).UserAuthToken()) // of a profile that was not there at the start
	becomes(1)
}
