//go:build unix

package main_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var rotationTime = flag.Duration("rotation", 7*time.Second, "how long TestRotationUnderLoad replaces files")

// Everything that can be replaced is, every second and under load: the server's certificate, the client CA, the Atlas CA,
// the secret and the policy. No call fails, on new connections or on old ones.
func TestRotationUnderLoad(t *testing.T) {
	t.Parallel()
	certs, em := makeCertificates(t), startAtlas(t)
	secret := writeFile(t, "secret", []byte(em.Org(0).UserAuthToken()))
	atlasCA := writeFile(t, "atlas-ca.pem", em.CAPEM())
	policy := func(n int) string {
		return fmt.Sprintf("# version %d\nprofiles:\n  acme: {userauthtoken_file: %s}\ncallers:\n  - {dns_san: web.internal, allow: [CreateToken], profile: acme}\n", n, secret)
	}
	policyFile := writeFile(t, "policy.yaml", []byte(policy(0)))
	clientCA, err := os.ReadFile(certs.caFile)
	if err != nil {
		t.Fatal(err)
	}
	s := invocation{args: []string{
		"serve", "--grpc-addr=127.0.0.1:0", "--http-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0",
		"--tls-cert-file=" + certs.serverCert, "--tls-key-file=" + certs.serverKey, "--tls-client-ca-file=" + certs.caFile,
		"--atlas-url=" + em.URL(), "--atlas-ca-file=" + atlasCA, "--policy-file=" + policyFile,
	}}.await(t, em)

	var (
		stop  = make(chan struct{})
		calls atomic.Int64
		seen  sync.Map // serial numbers of the server's certificates
		load  sync.WaitGroup
	)
	call := func(client *http.Client) {
		resp, err := do(client, newRequest(t, http.MethodPost, "https://"+s.http+restPath, ""))
		if err != nil || resp.status != http.StatusCreated {
			t.Errorf("call %d: %v, %d %s", calls.Load(), err, resp.status, resp.body)
		}
		calls.Add(1)
	}
	for _, keepAlive := range []bool{true, false} {
		config := &tls.Config{RootCAs: certs.pool, Certificates: []tls.Certificate{certs.client}, VerifyConnection: func(state tls.ConnectionState) error {
			seen.Store(state.PeerCertificates[0].SerialNumber.String(), true)
			return nil
		}}
		client := newHTTPClient(t, config)
		load.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
					call(client)
					if !keepAlive {
						client.CloseIdleConnections()
					}
				}
			}
		})
	}

	second := time.NewTicker(time.Second)
	defer second.Stop()
	end := time.After(*rotationTime)
	for n := 1; ; n++ {
		select {
		case <-end:
			close(stop)
			load.Wait()
			certificates := 0
			seen.Range(func(any, any) bool { certificates++; return true })
			t.Logf("%d calls, %d versions of each file, %d server certificates seen", calls.Load(), n, certificates)
			if certificates < 2 {
				t.Error("the server's certificate was never replaced")
			}
			return
		case <-second.C:
		}
		server := &x509.Certificate{DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
		key := sign(t, server, certs.ca, certs.caKey)
		replace(t, certs.serverKey, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: marshalKey(t, key)})))
		replace(t, certs.serverCert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Raw})))
		newline := bytes.Repeat([]byte("\n"), n%5+1) // another content, the same authorities
		replace(t, certs.caFile, string(append(bytes.Clone(clientCA), newline...)))
		replace(t, atlasCA, string(append(em.CAPEM(), newline...)))
		replace(t, policyFile, policy(n))
		replace(t, secret, em.Org(0).UserAuthToken()+string(newline))
		em.Org(0).RevokeJWTs() // so that the secret is needed
	}
}
