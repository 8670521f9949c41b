package load

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
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

	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/testcert"
)

// Log messages about replaced files.
const (
	logReplaced = "certificate replaced"
	logRefused  = "the last good one stays"
	logGood     = "the file can be used again"
)

// replaceFile replaces a file atomically.
func replaceFile(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := errors.Join(os.WriteFile(path+".new", content, 0o600), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
}

// replaceServer replaces the server certificate, and returns when it is in use.
func replaceServer(t *testing.T, s *testutil.Service, cert tls.Certificate) {
	t.Helper()
	awaitLog(t, s, logReplaced, func() {
		replaceFile(t, s.Certs.CertFile, testcert.EncodePEM("CERTIFICATE", cert.Certificate[0]))
		replaceFile(t, s.Certs.KeyFile, testcert.EncodePEM("PRIVATE KEY", testcert.MarshalKey(t, cert.PrivateKey)))
	})
}

// awaitLog calls do and waits until the log has a new line with what.
func awaitLog(t *testing.T, s *testutil.Service, what string, do func()) {
	t.Helper()
	before := s.Log.Len()
	do()
	testutil.Eventually(t, func() bool { return strings.Contains(s.Log.Since(before), what) }, "the log does not say: "+what)
}

func bundle(authorities ...testcert.Authority) []byte {
	var b []byte
	for _, a := range authorities {
		b = append(b, testcert.EncodePEM("CERTIFICATE", a.Cert.Raw)...)
	}
	return b
}

// dial returns a client with its own connections.
func dial(t *testing.T, s *testutil.Service, transport string, cfg *tls.Config) (c testutil.Caller, hangUp func()) {
	t.Helper()
	if transport == "REST" {
		transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: cfg, DialContext: s.DialContext}
		return testutil.RESTCaller{Base: "https://" + s.HTTPAddr().String(), Client: &http.Client{Transport: transport}}, transport.CloseIdleConnections
	}
	conn, err := grpc.NewClient(s.GRPCAddr().String(), grpc.WithTransportCredentials(credentials.NewTLS(cfg)), s.DialOption())
	if err != nil {
		t.Fatal(err)
	}
	return testutil.NewGRPCCaller(conn), func() { _ = conn.Close() }
}

// refuses reports whether both transports refuse a client's certificate.
func refuses(t *testing.T, s *testutil.Service, cfg *tls.Config) bool {
	t.Helper()
	for _, transport := range []string{"gRPC", "REST"} {
		c, hangUp := dial(t, s, transport, cfg)
		got := c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...)
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

// load is calls over both transports until stop, on kept connections and on a new one per call.
type load struct {
	quit       chan struct{}
	done       sync.WaitGroup
	calls      [4]atomic.Int64 // of each caller
	kept       atomic.Int64    // handshakes of kept connections
	servedWith sync.Map        // serial numbers of the server's certificates
}

func startLoad(t *testing.T, s *testutil.Service, cfg *tls.Config) *load {
	t.Helper()
	l := &load{quit: make(chan struct{})}
	headers := testutil.Credential(s.Atlas)
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
				c, hangUp := dial(t, s, transport, cfg)
				defer func() { hangUp() }()
				tick := time.NewTicker(50 * time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-l.quit:
						return
					case <-tick.C:
					}
					if got := c.Call(t.Context(), testutil.Create, headers...); got.Code != codes.OK {
						t.Errorf("%s, fresh connection %v: %v %s", transport, fresh, got.Code, got.Message)
						return
					}
					l.calls[2*i+j].Add(1)
					if fresh {
						hangUp()
						c, hangUp = dial(t, s, transport, cfg)
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

// awaitCalls waits for n more successful calls of each caller.
func (l *load) awaitCalls(t *testing.T, n int64) {
	t.Helper()
	for i := range l.calls {
		before := l.calls[i].Load()
		testutil.Eventually(t, func() bool { return l.calls[i].Load() >= before+n || t.Failed() }, "the calls stop")
	}
}

// TestFault64Rotation replaces the server certificate and the client CA under load. No call and no
// handshake may fail, and bad files must not replace good ones.
func TestFault64Rotation(t *testing.T) {
	testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
		s := v.Start(t, testutil.MutualTLS)
		next := testcert.NewAuthority(t)
		roots := x509.NewCertPool()
		roots.AddCert(s.Certs.CA.Cert)
		roots.AddCert(next.Cert)
		clientOf := func(cert tls.Certificate) *tls.Config {
			return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}
		}
		oldClient, newClient := clientOf(s.Certs.Client), clientOf(next.Issue(t, "client.test"))

		old := startLoad(t, s, oldClient)
		old.awaitCalls(t, 5)
		if !refuses(t, s, newClient) {
			t.Error("a client of an unknown authority is admitted")
		}
		replaceServer(t, s, s.Certs.CA.Issue(t, "localhost"))
		old.awaitCalls(t, 5)
		awaitLog(t, s, logReplaced, func() { replaceFile(t, s.Certs.CAFile, bundle(s.Certs.CA, next)) })
		both := startLoad(t, s, newClient)
		both.awaitCalls(t, 5)
		replaceServer(t, s, next.Issue(t, "localhost"))
		old.awaitCalls(t, 5)
		both.awaitCalls(t, 5)
		old.stop()
		awaitLog(t, s, logReplaced, func() { replaceFile(t, s.Certs.CAFile, bundle(next)) })
		if !refuses(t, s, oldClient) {
			t.Error("a client of the removed authority is admitted")
		}
		both.awaitCalls(t, 5)

		testBadFiles(t, s, next, both, oldClient)
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
	})
}

// testBadFiles replaces each kind of file by a bad one under load. Package reload tests what makes
// a file bad.
func testBadFiles(t *testing.T, s *testutil.Service, next testcert.Authority, l *load, untrusted *tls.Config) {
	t.Helper()
	content := func(path string) []byte {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	cert, other := content(s.Certs.CertFile), next.Issue(t, "localhost")
	intermediate := testcert.EncodePEM("CERTIFICATE", next.Cert.Raw)
	for _, tc := range []struct {
		name, file string
		bad        []byte
	}{
		{"half a certificate", s.Certs.CertFile, cert[:len(cert)/2]},
		{"another certificate's key", s.Certs.KeyFile, testcert.EncodePEM("PRIVATE KEY", testcert.MarshalKey(t, other.PrivateKey))},
		{"half a client CA", s.Certs.CAFile, intermediate[:len(intermediate)/2]},
	} {
		good := content(tc.file)
		awaitLog(t, s, logRefused, func() { replaceFile(t, tc.file, tc.bad) })
		l.awaitCalls(t, 5)
		if !refuses(t, s, untrusted) {
			t.Errorf("%s: a client of the removed authority is admitted", tc.name)
		}
		awaitLog(t, s, logGood, func() { replaceFile(t, tc.file, good) })
		l.awaitCalls(t, 5)
	}
}
