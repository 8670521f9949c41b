//go:build unix

package main_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

// rotationTime is how long TestRotationUnderLoad replaces files.
func rotationTime() time.Duration {
	if testutil.Long() {
		return 7 * time.Second
	}
	return time.Second
}

// serials are the serial numbers of the certificates that somebody has shown.
type serials struct{ seen sync.Map }

func (s *serials) record(state tls.ConnectionState) error {
	s.seen.Store(state.PeerCertificates[0].SerialNumber.String(), true)
	return nil
}

func (s *serials) has(cert *x509.Certificate) bool {
	_, ok := s.seen.Load(cert.SerialNumber.String())
	return ok
}

// startFront puts a proxy in front of Atlas that lets nobody in without a certificate of the test's authority. It returns
// its base URL and what it has been shown.
func startFront(t *testing.T, em *emulator.Emulator, certs certificates) (base string, shown *serials) {
	t.Helper()
	atlas, err := url.Parse(em.URL())
	if err != nil {
		t.Fatal(err)
	}
	own, err := tls.LoadX509KeyPair(certs.serverCert, certs.serverKey)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: em.CertPool()}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	shown = &serials{}
	front := httptest.NewUnstartedServer(&httputil.ReverseProxy{Transport: transport, Rewrite: func(r *httputil.ProxyRequest) {
		r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = atlas.Scheme, atlas.Host, atlas.Host
	}})
	front.EnableHTTP2 = true
	front.TLS = &tls.Config{
		Certificates: []tls.Certificate{own}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: certs.pool, VerifyConnection: shown.record,
	}
	front.StartTLS()
	t.Cleanup(front.Close)
	return front.URL + atlas.Path, shown
}

// issue replaces a certificate and its key by new ones for the same use.
func (c certificates) issue(t *testing.T, certFile, keyFile string, use x509.ExtKeyUsage) *x509.Certificate {
	t.Helper()
	cert := &x509.Certificate{DNSNames: []string{"localhost", "web.internal"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{use}}
	key := sign(t, cert, c.ca, c.caKey)
	replace(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: marshalKey(t, key)})))
	replace(t, certFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})))
	return cert
}

// Everything that can be replaced is, every second and under load: the server's certificate, the client CA, the Atlas CA,
// the certificate for Atlas, the secret and the policy. No call fails, on new connections or on old ones.
func TestRotationUnderLoad(t *testing.T) {
	t.Parallel()
	certs, em := makeCertificates(t), startAtlas(t)
	front, shown := startFront(t, em, certs)
	clientCA, err := os.ReadFile(certs.caFile)
	if err != nil {
		t.Fatal(err)
	}
	secret, atlasCA := writeFile(t, "secret", []byte(em.Org(0).UserAuthToken())), writeFile(t, "atlas-ca.pem", clientCA)
	policy := func(n int) string {
		return fmt.Sprintf("# version %d\nprofiles:\n  acme: {userauthtoken_file: %s}\ncallers:\n  - {dns_san: web.internal, allow: [CreateToken], profile: acme}\n", n, secret)
	}
	policyFile := writeFile(t, "policy.yaml", []byte(policy(0)))
	s := invocation{args: []string{
		"serve", "--drain-delay=0s", "--grpc-addr=127.0.0.1:0", "--http-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0",
		"--tls-cert-file=" + certs.serverCert, "--tls-key-file=" + certs.serverKey, "--tls-client-ca-file=" + certs.caFile,
		"--atlas-url=" + front, "--atlas-ca-file=" + atlasCA, "--policy-file=" + policyFile,
		"--atlas-cert-file=" + certs.clientCert, "--atlas-key-file=" + certs.clientKey,
	}}.await(t, em)

	var met serials
	calls, stop := s.startLoad(t, &tls.Config{RootCAs: certs.pool, Certificates: []tls.Certificate{certs.client}, VerifyConnection: met.record})
	var (
		server, client *x509.Certificate
		n              int
		tick           = time.NewTicker(time.Second)
	)
	defer tick.Stop()
	for end := time.Now().Add(rotationTime()); n < 2 || time.Now().Before(end); <-tick.C {
		n++
		server = certs.issue(t, certs.serverCert, certs.serverKey, x509.ExtKeyUsageServerAuth)
		client = certs.issue(t, certs.clientCert, certs.clientKey, x509.ExtKeyUsageClientAuth)
		newline := bytes.Repeat([]byte("\n"), n%5+1) // another content, the same authorities
		replace(t, certs.caFile, string(append(bytes.Clone(clientCA), newline...)))
		replace(t, atlasCA, string(append(bytes.Clone(clientCA), newline...)))
		replace(t, policyFile, policy(n))
		replace(t, secret, em.Org(0).UserAuthToken()+string(newline))
		if n%3 == 1 { // not so often that one call meets it twice
			em.Org(0).RevokeJWTs() // so that the secret is needed
		}
	}
	poll(t, "the last certificates are shown", func() bool { return met.has(server) && shown.has(client) })
	for _, used := range []string{
		`"certificate replaced","certificate":"server"`, `"certificate replaced","certificate":"client_ca"`,
		`"certificate replaced","certificate":"atlas_ca"`, `"certificate replaced","certificate":"atlas_client"`,
		`"policy replaced"`, `"userauthtoken replaced"`,
	} {
		if times := strings.Count(s.stderr.String(), used); times < n/3 { // a busy machine skips some
			t.Errorf("%d of %d: %s", times, n, used)
		}
	}
	stop()
	t.Logf("%d calls, %d versions of each file", calls.Load(), n)
}

// startLoad calls until stop, on one connection and on a fresh one for each call. A call that fails is an error.
func (s *service) startLoad(t *testing.T, config *tls.Config) (calls *atomic.Int64, stop func()) {
	t.Helper()
	var (
		quit = make(chan struct{})
		load sync.WaitGroup
	)
	calls = &atomic.Int64{}
	for _, keepAlive := range []bool{true, false} {
		client := newHTTPClient(t, config.Clone()) // a transport adds to its own
		load.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-quit:
					return
				case <-tick.C:
				}
				resp, err := do(client, newRequest(t, http.MethodPost, "https://"+s.http+restPath, ""))
				if err != nil || resp.status != http.StatusCreated {
					t.Errorf("call %d: %v, %d %s", calls.Load(), err, resp.status, resp.body)
				}
				calls.Add(1)
				if !keepAlive {
					client.CloseIdleConnections()
				}
			}
		})
	}
	stop = sync.OnceFunc(func() { close(quit); load.Wait() })
	t.Cleanup(stop)
	return calls, stop
}

// /metrics says when what is in use for Atlas expires, before and after it is replaced, and while a new file is no good.
func TestAtlasCertificateExpiry(t *testing.T) {
	t.Parallel()
	certs := makeCertificates(t)
	first, err := tls.LoadX509KeyPair(certs.clientCert, certs.clientKey)
	if err != nil {
		t.Fatal(err)
	}
	atlasCA, err := os.ReadFile(certs.caFile)
	if err != nil {
		t.Fatal(err)
	}
	s := startServe(t, "--atlas-cert-file="+certs.clientCert, "--atlas-key-file="+certs.clientKey, "--atlas-ca-file="+certs.caFile)
	want := func(certificate string, cert *x509.Certificate) {
		t.Helper()
		line := fmt.Sprintf("\ntokend_certificate_expiry_timestamp_seconds{certificate=%q} %v\n", certificate, float64(cert.NotAfter.Unix()))
		if metrics := "\n" + probe(t, s.admin, "/metrics") + "\n"; !strings.Contains(metrics, line) {
			t.Errorf("want %s in:\n%s", line, metrics)
		}
	}
	want("atlas_ca", certs.ca)
	want("atlas_client", first.Leaf)
	poll(t, "another second", func() bool { return time.Now().Add(time.Hour).After(first.Leaf.NotAfter.Add(time.Second)) })
	second := certs.issue(t, certs.clientCert, certs.clientKey, x509.ExtKeyUsageClientAuth)
	poll(t, "the replacement", func() bool { return strings.Contains(s.stderr.String(), `"certificate replaced"`) })
	want("atlas_client", second)

	certs.issue(t, certs.clientCert, certs.serverKey, x509.ExtKeyUsageClientAuth) // its key is somewhere else
	replace(t, certs.caFile, string(atlasCA[:len(atlasCA)/2]))
	poll(t, "both to be reported", func() bool { return strings.Count(s.stderr.String(), "the last good one stays") == 2 })
	want("atlas_client", second)
	want("atlas_ca", certs.ca)
}
