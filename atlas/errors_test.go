package atlas

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestClassify has the errors that the servers of the other tests cannot cause.
func TestClassify(t *testing.T) {
	dialTimeout := &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}
	for _, tc := range []struct {
		err  error
		kind Kind
		text string
	}{
		{errors.New("tls: server selected unsupported protocol version 301"), KindTLS, "tls: server selected unsupported protocol version 301"},
		{
			&net.OpError{Op: "proxyconnect", Net: "tcp", Err: errors.New("tls: internal error")},
			KindTLS, "tls: internal error",
		},
		{&net.OpError{Op: "proxyconnect", Net: "tcp", Err: dialTimeout}, KindUnreachable, "dial tcp: i/o timeout"},
		{
			fmt.Errorf("planted: %w", &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", syscall.EPIPE)}),
			KindUnreachable, "write tcp: write: broken pipe",
		},
		{fmt.Errorf("planted: %w", io.EOF), KindUnreachable, errCutShort.Error()},
		{fmt.Errorf("planted: %w", context.DeadlineExceeded), KindUnreachable, "the answer was not valid HTTP, or the connection failed (*fmt.wrapError)"},
		{errors.New("http: server closed idle connection"), KindUnreachable, "http: server closed idle connection"},
		{streamError{Code: 2, Cause: errors.New(fromPeer)}, KindUnreachable, "the HTTP/2 stream was reset with code 2"},
		{streamError{Code: 2}, KindUnreachable, "the HTTP/2 stream was reset with code 2"},
		{streamError{Code: 1, Cause: errors.New("planted")}, KindUnreachable, ErrProtocol.Error()},
		{errors.New("planted"), KindUnreachable, "the answer was not valid HTTP, or the connection failed (*errors.errorString)"},
	} {
		kind, cause := classify(tc.err)
		if kind != tc.kind || cause.Error() != tc.text {
			t.Errorf("%v: got %v, %q, want %v, %q", tc.err, kind, cause, tc.kind, tc.text)
		}
		outcomeOf(t, OpCreate, &Error{Op: OpCreate, Kind: kind, Err: cause})
	}
}

func TestClassOfErrors(t *testing.T) {
	cause := errors.New("cause")
	status := func(op Operation, code int) error {
		return fmt.Errorf("wrapped: %w", &Error{Op: op, Kind: KindStatus, StatusCode: code, Sent: true, Err: cause})
	}
	kind := func(k Kind) error { return &Error{Op: OpCreate, Kind: k, Err: cause} }
	for _, tc := range []struct {
		err  error
		want Class
	}{
		{nil, ClassOK},
		{cause, ClassOther},
		{context.Canceled, ClassOther},
		{kind(KindUnreachable), ClassOutage},
		{kind(KindTimeout), ClassOutage},
		{status(OpCreate, 500), ClassOutage},
		{status(OpLogIn, 599), ClassOutage},
		{kind(KindUnavailable), ClassHeldBack},
		{kind(KindOverloaded), ClassHeldBack},
		{status(OpDelete, 429), ClassThrottled},
		{status(OpLogIn, 429), ClassThrottled},
		{status(OpCreate, 401), ClassUnauthorized},
		{status(OpLogIn, 400), ClassUnauthorized},
		{status(OpRefresh, 400), ClassUnauthorized},
		{status(OpRefresh, 403), ClassUnauthorized},
		{&CredentialError{Err: cause}, ClassUnauthorized},
		{status(OpDelete, 403), ClassOther},
		{status(OpCreate, 400), ClassRejected},
		{status(OpLogIn, 404), ClassRejected},
		{status(OpDelete, 409), ClassRejected},
		{status(OpDelete, 499), ClassRejected},
		{kind(KindTLS), ClassOther},
		{kind(KindRedirect), ClassOther},
		{kind(KindInvalidResponse), ClassOther},
		{kind(KindCanceled), ClassCanceled},
		{kind(KindInvalidCredential), ClassOther},
		{kind(""), ClassOther},
	} {
		if got := Classify(tc.err); got != tc.want {
			t.Errorf("%v: got %v, want %v", tc.err, got, tc.want)
		}
	}
}

// TestFault04OutcomeUnknown checks that a delete that was sent may have taken effect, unless
// Atlas's answer says that it has not.
func TestFault04OutcomeUnknown(t *testing.T) {
	for _, tc := range []struct {
		err  Error
		want bool
	}{
		{Error{Op: OpDelete, Kind: KindTimeout, Sent: true}, true},
		{Error{Op: OpDelete, Kind: KindTimeout}, false},
		{Error{Op: OpDelete, Kind: KindUnreachable, Sent: true}, true},
		{Error{Op: OpDelete, Kind: KindCanceled, Sent: true}, true},
		{Error{Op: OpDelete, Kind: KindInvalidResponse, StatusCode: 199, Sent: true}, true},
		{Error{Op: OpDelete, Kind: KindRedirect, StatusCode: 302, Sent: true}, false},
		{Error{Op: OpDelete, Kind: KindUnavailable}, false},
		{Error{Op: OpCreate, Kind: KindTimeout, Sent: true}, false},
	} {
		if got := tc.err.OutcomeUnknown(); got != tc.want {
			t.Errorf("%+v: got %t, want %t", tc.err, got, tc.want)
		}
	}
	for code, want := range map[int]bool{400: false, 401: false, 404: false, 408: true, 409: false, 425: true, 429: false, 499: true, 500: true, 503: true} {
		e := Error{Op: OpDelete, Kind: KindStatus, StatusCode: code, Sent: true}
		if e.OutcomeUnknown() != want {
			t.Errorf("HTTP %d: want %t", code, want)
		}
	}
}

func TestTLS(t *testing.T) {
	good, pool := goodCertificate()
	expired, expiredPool := newCertificate(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	early, earlyPool := newCertificate(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })
	elsewhere, elsewherePool := newCertificate(func(c *x509.Certificate) { c.IPAddresses = nil; c.DNSNames = []string{"elsewhere.example"} })
	stranger, _ := newCertificate(nil)

	serve := func(config *tls.Config) func(net.Conn) {
		return func(conn net.Conn) {
			tlsConn := tls.Server(conn, config)
			if tlsConn.Handshake() == nil {
				_, _ = io.Copy(io.Discard, tlsConn)
			}
		}
	}
	certificateOnly := func(cert tls.Certificate) func(net.Conn) {
		return serve(&tls.Config{Certificates: []tls.Certificate{cert}})
	}
	for _, tc := range []struct {
		name        string
		serve       func(net.Conn)
		roots       *x509.CertPool
		unverified  bool // the certificate is the reason
		mayHaveSent bool
	}{
		{name: "expired", serve: certificateOnly(expired), roots: expiredPool, unverified: true},
		{name: "not valid yet", serve: certificateOnly(early), roots: earlyPool, unverified: true},
		{name: "for another host", serve: certificateOnly(elsewhere), roots: elsewherePool, unverified: true},
		{name: "self-signed", serve: certificateOnly(stranger), roots: pool, unverified: true},
		{name: "self-signed, against the system's roots", serve: certificateOnly(stranger), unverified: true},
		{name: "TLS 1.1 only", roots: pool, serve: serve(&tls.Config{
			Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11,
		})},
		{name: "no protocol in common", roots: pool, serve: serve(&tls.Config{
			Certificates: []tls.Certificate{good}, NextProtos: []string{"planted"},
		})},
		// TLS 1.3 refuses a client after its handshake is done.
		{name: "wants a client certificate", roots: pool, mayHaveSent: true, serve: serve(&tls.Config{
			Certificates: []tls.Certificate{good}, ClientAuth: tls.RequireAnyClientCert,
		})},
		{name: "plain HTTP", roots: pool, serve: func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 1024))
			_, _ = io.WriteString(conn, "HTTP/1.1 400 planted\r\nConnection: close\r\n\r\n")
		}},
		{name: "not TLS at all", roots: pool, serve: func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 1024))
			_, _ = io.WriteString(conn, "planted, not TLS")
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newRawServer(t, tc.serve)
			c := newTestClient(t, Config{BaseURL: "https://" + s.addr, RootCAs: tc.roots})
			_, err := c.CreateEphemeralToken(t.Context(), plantedJWT)
			if got, want := outcomeOf(t, OpCreate, err), (outcome{Kind: KindTLS, Sent: tc.mayHaveSent}); got != want {
				t.Errorf("got %+v, want %+v: %v", got, want, err)
			}
			if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok != tc.unverified {
				t.Errorf("a CertificateVerificationError: %v, want %v: %v", ok, tc.unverified, err)
			}
		})
	}
}

// A proxy sees where the connection goes, and neither the credential nor the token. Its own
// password stays out of errors.
func TestProxy(t *testing.T) {
	conns, config := newHTTPServer(t, true, func(w http.ResponseWriter, _ *http.Request) { answerToken(w) })

	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	answers := func(answer string) string {
		return newRawServer(t, func(conn net.Conn) {
			if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				_, _ = io.WriteString(conn, answer)
			}
		}).addr
	}
	var seen strings.Builder // the tunnel's side of the client
	tunnel := newRawServer(t, func(conn net.Conn) {
		br := bufio.NewReader(io.TeeReader(conn, &seen))
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		upstream, err := net.Dial("tcp", req.Host)
		if err != nil {
			return
		}
		defer upstream.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n")
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = io.Copy(upstream, br); upstream.Close() })
		_, _ = io.Copy(conn, upstream)
		conn.Close()
		wg.Wait()
	})

	for _, tc := range []struct {
		name  string
		proxy string
		want  outcome
		text  string
	}{
		{"works", "http://user:proxy-password@" + tunnel.addr, outcome{}, ""},
		{
			"refuses", "http://user:proxy-password@" + answers("HTTP/1.1 407 planted\r\nX-Planted: planted\r\n\r\n"),
			outcome{Kind: KindUnreachable}, "the proxy answered CONNECT with status 407",
		},
		{"not HTTP", "http://user:proxy-password@" + answers("planted\r\n\r\n"), outcome{Kind: KindUnreachable}, ""},
		{"hangs up", "http://user:proxy-password@" + answers(""), outcome{Kind: KindUnreachable}, ""},
		{"down", "http://user:proxy-password@" + closed.Addr().String(), outcome{Kind: KindUnreachable}, "connection refused"},
		{"speaks no TLS", "https://user:proxy-password@" + answers("planted"), outcome{}, ""},
		{"unknown scheme", "proxy-password://user:proxy-password@" + closed.Addr().String(), outcome{Kind: KindUnreachable}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u, err := url.Parse(tc.proxy)
			if err != nil {
				t.Fatal(err)
			}
			c := newTestClient(t, config)
			c.transport.Load().Proxy = http.ProxyURL(u) // from the environment, net/http uses none for loopback
			before := conns.Load()
			_, err = c.CreateEphemeralToken(t.Context(), plantedJWT)
			if got := outcomeOf(t, OpCreate, err); got != tc.want && tc.name != "speaks no TLS" {
				t.Errorf("got %+v, want %+v: %v", got, tc.want, err)
			}
			if err != nil && !strings.Contains(err.Error(), tc.text) {
				t.Errorf("error %q does not say %q", err, tc.text)
			}
			if err != nil && conns.Load() != before {
				t.Error("Atlas saw a connection")
			}
		})
	}
	if s := seen.String(); strings.Contains(s, string(plantedJWT)) || strings.Contains(s, plantedToken) {
		t.Errorf("the proxy saw a secret: %q", s)
	}
}
