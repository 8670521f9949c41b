package emulator_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, config emulator.Config) *emulator.Emulator {
	t.Helper()
	em, err := emulator.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	return em
}

// call is one request and what is expected of its answer's form.
type call struct {
	method, path  string // the path is below the base URL
	authorization string
	contentType   string
	body          string
	client        *http.Client // default: one for this call
}

// result is what a test compares of an answer.
type result struct {
	Status int
	Body   string
}

var (
	createWith = func(jwt string) call {
		return call{method: "POST", path: "/ephemeral-token", authorization: "JWT " + jwt}
	}
	deleteWith = func(jwt string) call {
		return call{method: "DELETE", path: "/ephemeral-token", authorization: "JWT " + jwt}
	}
	post = func(path, body string) call {
		return call{method: "POST", path: path, contentType: "application/json", body: body}
	}
)

func (c call) request(ctx context.Context, em *emulator.Emulator) *http.Request {
	base := em.URL()
	if strings.HasPrefix(c.path, "/_emulator") {
		base = strings.TrimSuffix(base, "/v1")
	}
	r, err := http.NewRequestWithContext(ctx, c.method, base+c.path, strings.NewReader(c.body))
	if err != nil {
		panic(err)
	}
	if c.authorization != "" {
		r.Header.Set("Authorization", c.authorization)
	}
	if c.contentType != "" {
		r.Header.Set("Content-Type", c.contentType)
	}
	return r
}

// try makes the call and reads the whole answer.
func (c call) try(ctx context.Context, em *emulator.Emulator) (*http.Response, string, error) {
	client := c.client
	if client == nil {
		transport := newTransport(em, true)
		defer transport.CloseIdleConnections()
		client = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	response, err := client.Do(c.request(ctx, em))
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response, string(body), err
}

// do is try for calls that must be answered.
func (c call) do(t *testing.T, em *emulator.Emulator) (*http.Response, string) {
	t.Helper()
	response, body, err := c.try(t.Context(), em)
	if err != nil {
		t.Fatalf("%s %s: %v", c.method, c.path, err)
	}
	return response, body
}

// field makes a call that must answer with the status and a JSON object, and
// returns a text field of it.
func (c call) field(t *testing.T, em *emulator.Emulator, status int, name string) string {
	t.Helper()
	response, body := c.do(t, em)
	if response.StatusCode != status {
		t.Fatalf("%s %s: status %d, want %d: %s", c.method, c.path, response.StatusCode, status, body)
	}
	var object map[string]any
	if err := json.Unmarshal([]byte(body), &object); err != nil {
		t.Fatalf("%s %s: %v: %s", c.method, c.path, err, body)
	}
	text, _ := object[name].(string)
	if text == "" {
		t.Fatalf("%s %s: no %q in %s", c.method, c.path, name, body)
	}
	return text
}

// newClient trusts em, speaks the given version of HTTP and is the test's own.
func newClient(t *testing.T, em *emulator.Emulator, http2 bool) *http.Client {
	transport := newTransport(em, http2)
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func newTransport(em *emulator.Emulator, http2 bool) *http.Transport {
	return &http.Transport{TLSClientConfig: &tls.Config{RootCAs: em.CertPool()}, ForceAttemptHTTP2: http2}
}

// eachProtocol runs the test over HTTP/1.1 and over HTTP/2.
func eachProtocol(t *testing.T, test func(t *testing.T, em *emulator.Emulator, client *http.Client)) {
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2.0": true} {
		t.Run(name, func(t *testing.T) {
			em := start(t, emulator.Config{})
			client := newClient(t, em, http2)
			c := createWith(em.Org(1).JWT())
			c.client = client
			if response, _ := c.do(t, em); response.Proto != name {
				t.Fatalf("protocol is %s", response.Proto)
			}
			test(t, em, client)
		})
	}
}

func TestStartRefusesBadConfig(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for name, test := range map[string]struct {
		config emulator.Config
		want   string
	}{
		"all interfaces": {emulator.Config{Addr: ":0"}, "not a loopback address"},
		"any IPv4":       {emulator.Config{Addr: "0.0.0.0:0"}, "not a loopback address"},
		"elsewhere":      {emulator.Config{Addr: "192.0.2.1:0"}, "not a loopback address"},
		"no port":        {emulator.Config{Addr: "127.0.0.1"}, "missing port"},
		"port taken":     {emulator.Config{Addr: busy.Addr().String()}, "address already in use"},
	} {
		t.Run(name, func(t *testing.T) {
			em, err := emulator.Start(test.config)
			if err == nil {
				em.Close()
				t.Fatal("started")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %q, want it to say %q", err, test.want)
			}
		})
	}
}

// TestCloseEndsStalledClients checks that Close ends clients in every state.
func TestCloseEndsStalledClients(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			em := start(t, emulator.Config{})
			addr := strings.TrimSuffix(strings.TrimPrefix(em.URL(), "https://"), "/v1")

			silent, err := net.Dial("tcp", addr) // never begins TLS
			if err != nil {
				t.Fatal(err)
			}
			defer silent.Close()
			idle, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: em.CertPool()}) // never asks
			if err != nil {
				t.Fatal(err)
			}
			defer idle.Close()

			em.Inject(emulator.Fault{On: emulator.Create, Shape: emulator.Stall})
			em.Inject(emulator.Fault{On: emulator.Delete, Delay: time.Hour})
			em.Inject(emulator.Fault{On: emulator.Login, Shape: emulator.Endless})
			gate := em.Hold(emulator.Refresh)
			client := newClient(t, em, http2)

			open := func(c call) *http.Response { // reads nothing
				response, err := client.Do(c.request(t.Context(), em))
				if err != nil {
					t.Fatal(err)
				}
				return response
			}
			defer open(createWith(em.Org(0).JWT())).Body.Close()
			defer open(post("/login/", `{"userauthtoken": "x"}`)).Body.Close()
			unanswered := make(chan error)
			for _, c := range []call{deleteWith(em.Org(0).JWT()), post("/api-token-refresh/", `{"token": "x"}`)} {
				c.client = client
				go func() {
					_, _, err := c.try(context.Background(), em)
					unanswered <- err
				}()
			}
			if err := gate.Wait(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			em.Close()
			for range 2 {
				if err := <-unanswered; err == nil {
					t.Error("answered")
				}
			}
			em.Close() // harmless
			for op, n := range em.Counters().Calls {
				for _, ended := range em.Counters().Statuses[op] {
					n -= ended
				}
				if n != 0 {
					t.Errorf("%d of %q still in flight", n, op)
				}
			}
		})
	}
}

// handshake connects as if to host and returns the server's certificate.
func handshake(em *emulator.Emulator, host string) (*x509.Certificate, error) {
	u, err := url.Parse(em.URL())
	if err != nil {
		return nil, err
	}
	conn, err := tls.Dial("tcp", u.Host, &tls.Config{RootCAs: em.CertPool(), ServerName: host})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0], nil
}

func TestCertificate(t *testing.T) {
	em := start(t, emulator.Config{})
	for _, host := range []string{"127.0.0.1", "::1", "localhost"} {
		leaf, err := handshake(em, host)
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		if _, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok {
			t.Errorf("key is a %T", leaf.PublicKey)
		}
		if left := time.Until(leaf.NotAfter); left < 24*time.Hour || left > 30*24*time.Hour {
			t.Errorf("valid for another %v", left)
		}
		if leaf.IsCA {
			t.Error("is an authority")
		}
	}
	if _, err := handshake(em, "atlas.forsta.io"); !errors.As(err, new(x509.HostnameError)) {
		t.Errorf("another host: %v", err)
	}
}

func TestBadCertificates(t *testing.T) {
	for kind, is := range map[emulator.CertificateKind]func(error) bool{
		emulator.ExpiredCertificate: func(err error) bool {
			var invalid x509.CertificateInvalidError
			return errors.As(err, &invalid) && invalid.Reason == x509.Expired
		},
		emulator.OtherHostCertificate:  func(err error) bool { return errors.As(err, new(x509.HostnameError)) },
		emulator.SelfSignedCertificate: func(err error) bool { return errors.As(err, new(x509.UnknownAuthorityError)) },
	} {
		t.Run(string(kind), func(t *testing.T) {
			em := start(t, emulator.Config{Certificate: kind})
			if _, err := handshake(em, "127.0.0.1"); !is(err) {
				t.Errorf("%v", err)
			}
		})
	}
}
