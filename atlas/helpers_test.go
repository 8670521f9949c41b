package atlas

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Planted wherever a secret can be. They must not appear in any error.
const (
	plantedToken = "planted-ephemeral-token"
	plantedOther = "planted-in-a-header"
)

const plantedJWT JWT = "eyJhbGciOiJIUzI1NiJ9.eyJqd3QiOiJwbGFudGVkLWp3dCJ9.c2VjcmV0LXNpZ25hdHVyZQ"

// outcome is what the tests compare of an operation's error. The zero outcome is success.
type outcome struct {
	Kind       Kind
	StatusCode int
	RetryAfter time.Duration
	Sent       bool
}

// outcomeOf also checks what is true of every error.
func outcomeOf(t testing.TB, op Operation, err error) outcome {
	t.Helper()
	if err == nil {
		return outcome{}
	}
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error is a %T: %v", err, err)
	}
	if e.Op != op {
		t.Errorf("Op = %q, want %q", e.Op, op)
	}
	if e.Err == nil {
		t.Fatal("Err is nil")
	}
	for _, target := range []error{context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, target) && e.Kind != KindCanceled {
			t.Errorf("a %v error matches %v: %v", e.Kind, target, err)
		}
	}
	checkNoSecret(t, err)
	return outcome{e.Kind, e.StatusCode, e.RetryAfter, e.Sent}
}

// checkNoSecret looks at an error in all the ways in which one gets into a log, and at all that it
// wraps.
func checkNoSecret(t testing.TB, err error) {
	t.Helper()
	for e := err; e != nil; e = errors.Unwrap(e) {
		asJSON, _ := json.Marshal(e)
		text := fmt.Sprintf("%v\n%+v\n%#v\n%s\n%q\n%s", e, e, e, e, e, asJSON)
		for _, secret := range []string{string(plantedJWT), plantedToken, plantedOther, "planted", "proxy-password"} {
			if strings.Contains(text, secret) {
				t.Errorf("the error holds %q:\n%s", secret, text)
			}
		}
	}
}

func newTestClient(t testing.TB, config Config) *Client {
	t.Helper()
	if config.Timeout == 0 {
		config.Timeout = 5 * time.Second
	}
	c, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// newCertificate makes a certificate for 127.0.0.1, signed by itself, and a pool that believes it.
func newCertificate(change func(*x509.Certificate)) (tls.Certificate, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "atlas test"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool
}

// rawServer is a TCP server whose every connection is a function's to misbehave on.
type rawServer struct {
	addr  string
	conns atomic.Int32 // accepted so far
	stop  chan struct{}
}

func newRawServer(t testing.TB, handle func(net.Conn)) *rawServer {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &rawServer{addr: listener.Addr().String(), stop: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.conns.Add(1)
			wg.Go(func() {
				done := make(chan struct{})
				defer close(done)
				wg.Go(func() { // the test's end closes what is still open
					select {
					case <-done:
					case <-s.stop:
					}
					conn.Close()
				})
				handle(conn)
			})
		}
	})
	t.Cleanup(func() {
		close(s.stop)
		listener.Close()
		wg.Wait()
	})
	return s
}

// goodCertificate is one for all tests that do not care.
var goodCertificate = sync.OnceValues(func() (tls.Certificate, *x509.CertPool) { return newCertificate(nil) })

// newRawTLS serves TLS with a good certificate and calls handle for each request of HTTP/1.1, until
// it returns false.
func newRawTLS(t testing.TB, handle func(conn *tls.Conn, req *http.Request) bool) (*rawServer, Config) {
	t.Helper()
	cert, pool := goodCertificate()
	s := newRawServer(t, func(conn net.Conn) {
		tlsConn := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}})
		br := bufio.NewReader(tlsConn)
		for {
			req, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil || !handle(tlsConn, req) {
				return
			}
		}
	})
	return s, Config{BaseURL: "https://" + s.addr + "/v1", RootCAs: pool}
}

// newHTTPServer serves TLS with httptest and counts connections.
func newHTTPServer(t testing.TB, http2 bool, handler http.HandlerFunc) (conns *atomic.Int32, config Config) {
	t.Helper()
	conns = new(atomic.Int32)
	s := httptest.NewUnstartedServer(handler)
	s.EnableHTTP2 = http2
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return conns, Config{BaseURL: s.URL + "/v1", RootCAs: pool}
}

func answerToken(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_, _ = io.WriteString(w, `{"token":"`+plantedToken+`"}`)
}

// reset closes a connection with a TCP reset instead of a FIN.
func reset(conn *tls.Conn) {
	tcp := conn.NetConn().(*net.TCPConn)
	_ = tcp.SetLinger(0)
	_ = tcp.Close()
}

// fakeAtlas is an Atlas that logs in and refreshes as its fields say.
type fakeAtlas struct {
	mu                sync.Mutex
	logins, refreshes int             // guarded by mu
	life              time.Duration   // guarded by mu; of the JWTs
	expiry            time.Time       // guarded by mu; of the JWTs, in place of life
	skew              time.Duration   // guarded by mu; of its clock against ours
	latency           time.Duration   // guarded by mu
	loginErr          error           // guarded by mu
	refreshErr        error           // guarded by mu
	wrong             []UserAuthToken // guarded by mu; refused whatever loginErr is
	claims            fakeClaims      // guarded by mu; those that its JWTs have beside exp
	org               string          // guarded by mu
	loggedIn          int64           // guarded by mu; when, by its clock
}

type fakeClaims struct{ iat, origIat bool }

func (f *fakeAtlas) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeAtlas) counts() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fmt.Sprintf("%d logins, %d refreshes", f.logins, f.refreshes)
}

func (f *fakeAtlas) issue(ctx context.Context, count *int, fail *error) (JWT, error) {
	f.mu.Lock()
	*count++
	latency, err := f.latency, *fail
	n := f.logins*1000 + f.refreshes
	now := time.Now().Add(f.skew)
	if count == &f.logins {
		f.loggedIn = now.Unix()
	}
	expiry := f.expiry
	if expiry.IsZero() {
		expiry = now.Add(f.life)
	}
	payload := fmt.Sprintf(`"exp":%d,"n":%d,"org_id":%q`, expiry.Unix(), n, f.org)
	if f.claims.iat {
		payload += fmt.Sprintf(`,"iat":%d`, now.Unix())
	}
	if f.claims.origIat {
		payload += fmt.Sprintf(`,"orig_iat":%d`, f.loggedIn)
	}
	f.mu.Unlock()
	select {
	case <-time.After(latency):
	case <-ctx.Done():
		return "", &Error{Op: OpLogIn, Kind: KindCanceled, Err: ctx.Err()}
	}
	if err != nil {
		return "", err
	}
	return JWT("e30." + base64.RawURLEncoding.EncodeToString([]byte("{"+payload+"}")) + ".c2ln"), nil
}

func (f *fakeAtlas) LogIn(ctx context.Context, secret UserAuthToken) (JWT, error) {
	f.mu.Lock()
	fail := &f.loginErr
	if slices.Contains(f.wrong, secret) {
		err := refusal()
		fail = &err
	}
	f.mu.Unlock()
	return f.issue(ctx, &f.logins, fail)
}

func (f *fakeAtlas) RefreshJWT(ctx context.Context, _ JWT) (JWT, error) {
	return f.issue(ctx, &f.refreshes, &f.refreshErr)
}

func plantedSecret() UserAuthToken { return "planted" }

func refusal() error {
	return &Error{Op: OpLogIn, Kind: KindStatus, StatusCode: 400, Err: errors.New("refused")}
}
