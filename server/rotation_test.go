package server_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// What the log says of replaced files.
const (
	logReplaced = "certificate replaced"
	logRefused  = "the last good one stays"
	logGood     = "the file can be used again"
)

// replaceFile puts a new file in place whole, as whoever rotates certificates should.
func replaceFile(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := errors.Join(os.WriteFile(path+".new", content, 0o600), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
}

// replaceServer puts another server certificate in place, and returns when it is in use.
func (s *service) replaceServer(t *testing.T, cert tls.Certificate) {
	t.Helper()
	s.awaitLog(t, logReplaced, func() {
		replaceFile(t, s.certs.certFile, encodePEM("CERTIFICATE", cert.Certificate[0]))
		replaceFile(t, s.certs.keyFile, encodePEM("PRIVATE KEY", marshalKey(t, cert)))
	})
}

// awaitLog returns when the log has said what once more than before do.
func (s *service) awaitLog(t *testing.T, what string, do func()) {
	t.Helper()
	before := strings.Count(s.log.String(), what)
	do()
	eventually(t, func() bool { return strings.Count(s.log.String(), what) > before }, "the log does not say: "+what)
}

func bundle(authorities ...authority) []byte {
	var b []byte
	for _, a := range authorities {
		b = append(b, encodePEM("CERTIFICATE", a.cert.Raw)...)
	}
	return b
}

// dial makes a client with connections of its own.
func (s *service) dial(t *testing.T, transport string, cfg *tls.Config) (c caller, hangUp func()) {
	t.Helper()
	if transport == "REST" {
		transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: cfg}
		return restCaller{base: "https://" + s.HTTPAddr().String(), client: &http.Client{Transport: transport}}, transport.CloseIdleConnections
	}
	conn, err := grpc.NewClient(s.GRPCAddr().String(), grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		t.Fatal(err)
	}
	return grpcCaller{ephemeraltokenv1.NewEphemeralTokenServiceClient(conn)}, func() { _ = conn.Close() }
}

// refuses reports whether a client with this certificate gets nowhere, over both transports.
func (s *service) refuses(t *testing.T, cfg *tls.Config) bool {
	t.Helper()
	for _, transport := range []string{"gRPC", "REST"} {
		c, hangUp := s.dial(t, transport, cfg)
		got := c.call(testContext(t), create, credential(s.atlas)...)
		hangUp()
		if got.Code == codes.OK {
			return false
		}
		if got.Reason != "" || got.HTTP != 0 {
			t.Errorf("%s: the refused client got an answer: %v %s", transport, got.Code, got.Reason)
		}
	}
	return true
}

// load is callers that call until stop, over both transports: on connections that they keep, and on a fresh one for each call.
type load struct {
	quit       chan struct{}
	done       sync.WaitGroup
	calls      [4]atomic.Int64 // of each caller
	kept       atomic.Int64    // handshakes of the connections that are kept
	servedWith sync.Map        // serial numbers of the server's certificates
}

func (s *service) startLoad(t *testing.T, cfg *tls.Config) *load {
	t.Helper()
	l := &load{quit: make(chan struct{})}
	headers := credential(s.atlas)
	for i, transport := range []string{"gRPC", "REST"} {
		for j, fresh := range []bool{false, true} {
			cfg := cfg.Clone()
			cfg.VerifyConnection = func(state tls.ConnectionState) error {
				l.servedWith.Store(state.PeerCertificates[0].SerialNumber.String(), true)
				if !fresh {
					l.kept.Add(1)
				}
				return nil
			}
			l.done.Go(func() {
				c, hangUp := s.dial(t, transport, cfg)
				defer func() { hangUp() }()
				tick := time.NewTicker(3 * time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-l.quit:
						return
					case <-tick.C:
					}
					if got := c.call(t.Context(), create, headers...); got.Code != codes.OK {
						t.Errorf("%s, fresh connection %v: %v %s", transport, fresh, got.Code, got.Message)
						return
					}
					l.calls[2*i+j].Add(1)
					if fresh {
						hangUp()
						c, hangUp = s.dial(t, transport, cfg)
					}
				}
			})
		}
	}
	t.Cleanup(l.stop)
	return l
}

func (l *load) stop() {
	select {
	case <-l.quit:
	default:
		close(l.quit)
	}
	l.done.Wait()
}

// awaitCalls waits until n more calls of each caller went well.
func (l *load) awaitCalls(t *testing.T, n int64) {
	t.Helper()
	for i := range l.calls {
		before := l.calls[i].Load()
		eventually(t, func() bool { return l.calls[i].Load() >= before+n || t.Failed() }, "calls do not go on")
	}
}

// TestFault64Rotation: server certificate and client CA are replaced under load, and no call and no handshake fails. What
// the new files say counts; bad new files keep the old ones.
func TestFault64Rotation(t *testing.T) {
	t.Parallel()
	s := startService(t, mutualTLS)
	next := newAuthority(t)
	roots := x509.NewCertPool()
	roots.AddCert(s.certs.ca.cert)
	roots.AddCert(next.cert)
	clientOf := func(cert tls.Certificate) *tls.Config {
		return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}
	}
	oldClient, newClient := clientOf(s.certs.client), clientOf(next.issue(t, "client.test"))

	old := s.startLoad(t, oldClient)
	old.awaitCalls(t, 10)
	if !s.refuses(t, newClient) {
		t.Error("an authority that nobody has named lets clients in")
	}
	s.replaceServer(t, s.certs.ca.issue(t, "localhost"))
	old.awaitCalls(t, 10)
	s.awaitLog(t, logReplaced, func() { replaceFile(t, s.certs.caFile, bundle(s.certs.ca, next)) })
	both := s.startLoad(t, newClient)
	both.awaitCalls(t, 10)
	s.replaceServer(t, next.issue(t, "localhost"))
	old.awaitCalls(t, 10)
	both.awaitCalls(t, 10)
	old.stop()
	s.awaitLog(t, logReplaced, func() { replaceFile(t, s.certs.caFile, bundle(next)) })
	if !s.refuses(t, oldClient) {
		t.Error("the authority that was dropped still lets clients in")
	}
	both.awaitCalls(t, 10)

	s.testBadFiles(t, next, both, oldClient)
	both.stop()
	for name, l := range map[string]*load{"old": old, "new": both} {
		certificates := 0
		l.servedWith.Range(func(any, any) bool { certificates++; return true })
		if want := map[string]int{"old": 3, "new": 2}[name]; certificates != want {
			t.Errorf("the %s clients met %d server certificates, want %d", name, certificates, want)
		}
		if n := l.kept.Load(); n != 2 {
			t.Errorf("the %s clients that keep their connections made %d, want one for each transport", name, n)
		}
	}
}

// testBadFiles puts every kind of bad file in place under load.
func (s *service) testBadFiles(t *testing.T, next authority, l *load, untrusted *tls.Config) {
	t.Helper()
	content := func(path string) []byte {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	cert, key, other := content(s.certs.certFile), content(s.certs.keyFile), next.issue(t, "localhost")
	intermediate := encodePEM("CERTIFICATE", next.cert.Raw)
	for _, tc := range []struct {
		name, file string
		bad        []byte
	}{
		{"half a certificate", s.certs.certFile, cert[:len(cert)/2]},
		{"half an intermediate", s.certs.certFile, append(bytes.Clone(cert), intermediate[:len(intermediate)/2]...)},
		{"another key's certificate", s.certs.certFile, encodePEM("CERTIFICATE", other.Certificate[0])},
		{"another certificate's key", s.certs.keyFile, encodePEM("PRIVATE KEY", marshalKey(t, other))},
		{"half a key", s.certs.keyFile, key[:len(key)/2]},
		{"an empty key", s.certs.keyFile, nil},
		{"an empty client CA", s.certs.caFile, nil},
		{"a client CA without any", s.certs.caFile, []byte("# none\n")},
		{"half a client CA", s.certs.caFile, intermediate[:len(intermediate)/2]},
		{"a client CA and a half", s.certs.caFile, append(bundle(s.certs.ca), intermediate[:len(intermediate)/2]...)},
		{"half a client CA, and one", s.certs.caFile, append(intermediate[:len(intermediate)/2:len(intermediate)/2], bundle(s.certs.ca)...)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			good := content(tc.file)
			s.awaitLog(t, logRefused, func() { replaceFile(t, tc.file, tc.bad) })
			l.awaitCalls(t, 5)
			if !s.refuses(t, untrusted) {
				t.Error("a client of the dropped authority gets in")
			}
			s.awaitLog(t, logGood, func() { replaceFile(t, tc.file, good) })
			l.awaitCalls(t, 5)
		})
	}
}

// expiry is what /metrics says of one certificate, -1 if it says nothing.
func (s *service) expiry(t *testing.T, certificate string) int64 {
	t.Helper()
	code, body := s.get(t, "/metrics")
	if code != http.StatusOK {
		t.Fatalf("/metrics: %d %q", code, body)
	}
	for line := range strings.Lines(body) {
		if text, ok := strings.CutPrefix(line, fmt.Sprintf("tokend_certificate_expiry_timestamp_seconds{certificate=%q} ", certificate)); ok {
			var seconds float64
			if _, err := fmt.Sscan(text, &seconds); err != nil {
				t.Fatal(err)
			}
			return int64(seconds)
		}
	}
	return -1
}

// TestCertificateExpiry: the gauge follows what is in use, and not what is in a file that cannot be used.
func TestCertificateExpiry(t *testing.T) {
	s := startService(t, mutualTLS)
	want := func(certificate string, notAfter time.Time) {
		t.Helper()
		if got := s.expiry(t, certificate); got != notAfter.Unix() {
			t.Errorf("%s expires at %d, want %d", certificate, got, notAfter.Unix())
		}
	}
	ca := s.certs.ca
	want("client_ca", ca.cert.NotAfter)
	later := time.Now().Add(30 * 24 * time.Hour)
	s.replaceServer(t, ca.issueUntil(t, "localhost", later))
	want("server", later)

	s.awaitLog(t, logRefused, func() {
		replaceFile(t, s.certs.certFile, encodePEM("CERTIFICATE", ca.issueUntil(t, "localhost", later.Add(time.Hour)).Certificate[0]))
	})
	want("server", later)

	// Of a bundle it is the first: whom that authority signed is refused from then on.
	soon := newAuthorityUntil(t, time.Now().Add(time.Minute))
	s.awaitLog(t, logReplaced, func() { replaceFile(t, s.certs.caFile, bundle(ca, soon)) })
	want("client_ca", soon.cert.NotAfter)
	if !strings.Contains(s.log.String(), "expires soon") {
		t.Error("the log does not say that an authority expires within a minute")
	}
	s.awaitLog(t, logRefused, func() { replaceFile(t, s.certs.caFile, bundle(ca)[:100]) })
	want("client_ca", soon.cert.NotAfter)
	s.awaitLog(t, logReplaced, func() { replaceFile(t, s.certs.caFile, bundle(ca)) })
	want("client_ca", ca.cert.NotAfter)
}
