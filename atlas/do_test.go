package atlas

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRequestOnTheWire(t *testing.T) {
	var got []string
	cert, pool := goodCertificate()
	s := newRawServer(t, func(conn net.Conn) {
		tlsConn := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}})
		br := bufio.NewReader(tlsConn)
		for {
			var head strings.Builder
			for {
				line, err := br.ReadString('\n')
				if err != nil {
					return
				}
				if line == "\r\n" {
					break
				}
				head.WriteString(line)
			}
			got = append(got, head.String())
			_, _ = io.WriteString(tlsConn, json1(201, `{"token":"t"}`))
		}
	})
	for _, base := range []string{"/v1", "/v1///", "", "/", "/a%2Fb"} {
		t.Run(base, func(t *testing.T) {
			got = nil
			c := newTestClient(t, Config{BaseURL: "https://" + s.addr + base, RootCAs: pool, UserAgent: "test/1 (x)"})
			if _, err := c.CreateEphemeralToken(t.Context(), "a.b-c_d.e"); err != nil {
				t.Fatal(err)
			}
			if err := c.DeleteEphemeralToken(t.Context(), "a.b.c="); err != nil {
				t.Fatal(err)
			}
			path := strings.TrimRight(base, "/") + "/ephemeral-token"
			want := []string{
				"POST " + path + " HTTP/1.1\r\nHost: " + s.addr + "\r\nUser-Agent: test/1 (x)\r\nContent-Length: 0\r\n" +
					"Accept: application/json\r\nAuthorization: JWT a.b-c_d.e\r\nContent-Type: application/json\r\nAccept-Encoding: gzip\r\n",
				"DELETE " + path + " HTTP/1.1\r\nHost: " + s.addr + "\r\nUser-Agent: test/1 (x)\r\n" +
					"Accept: application/json\r\nAuthorization: JWT a.b.c=\r\nContent-Type: application/json\r\nAccept-Encoding: gzip\r\n",
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
		})
	}
}

// TestDoWithBody checks that do sends a JSON body without a credential, as a login does.
func TestDoWithBody(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		var got, header string
		_, config := newHTTPServer(t, http2, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			got, header = r.Method+" "+r.URL.Path+" "+string(body), r.Header.Get("Authorization")
			answerToken(w)
		})
		c := newTestClient(t, config)
		r := request{op: OpLogIn, body: map[string]string{"userauthtoken": "x"}}
		token, err := do(t.Context(), c, r, decodeToken)
		if err != nil || token != plantedToken {
			t.Errorf("got %q, %v", string(token), err)
		}
		if want := `POST /v1/login/ {"userauthtoken":"x"}`; got != want || header != "" {
			t.Errorf("Atlas got %q and Authorization %q, want %q and none", got, header, want)
		}
	}
}

// TestInvalidIsNotSent checks that an invalid JWT or an ended context causes no connection.
func TestInvalidIsNotSent(t *testing.T) {
	conns, config := newHTTPServer(t, true, func(w http.ResponseWriter, _ *http.Request) { answerToken(w) })
	c := newTestClient(t, config)
	for _, jwt := range []JWT{
		"", "=", "planted\r\nX-Planted: 1", "planted\n", "planted\x00", "pla nted", "planted\t", "planted\x7f", "plänted",
		"planted\xff", "planted,planted", `"planted"`, "planted=planted", "planted\u2028",
	} {
		_, err := c.CreateEphemeralToken(t.Context(), jwt)
		if got, want := outcomeOf(t, OpCreate, err), (outcome{Kind: KindInvalidCredential}); got != want {
			t.Errorf("create with %q: got %+v, want %+v: %v", string(jwt), got, want, err)
		}
		err = c.DeleteEphemeralToken(t.Context(), jwt)
		if got, want := outcomeOf(t, OpDelete, err), (outcome{Kind: KindInvalidCredential}); got != want {
			t.Errorf("delete with %q: got %+v, want %+v: %v", string(jwt), got, want, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := c.CreateEphemeralToken(ctx, plantedJWT)
	if got, want := outcomeOf(t, OpCreate, err), (outcome{Kind: KindCanceled}); got != want || !errors.Is(err, context.Canceled) {
		t.Errorf("context already ended: got %+v, want %+v: %v", got, want, err)
	}
	if n := conns.Load(); n != 0 {
		t.Errorf("Atlas saw %d connections, want none", n)
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		elsewhere, other := newHTTPServer(t, http2, func(w http.ResponseWriter, _ *http.Request) { answerToken(w) })
		var calls atomic.Int32
		_, config := newHTTPServer(t, http2, func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			http.Redirect(w, r, other.BaseURL+"/"+plantedOther, http.StatusTemporaryRedirect)
		})
		c := newTestClient(t, config)
		_, err := c.CreateEphemeralToken(t.Context(), plantedJWT)
		if got, want := outcomeOf(t, OpCreate, err), (outcome{KindRedirect, 307, 0, true}); got != want {
			t.Errorf("got %+v, want %+v: %v", got, want, err)
		}
		if n := elsewhere.Load(); n != 0 {
			t.Errorf("the other host saw %d connections, want none", n)
		}
		if n := calls.Load(); n != 1 {
			t.Errorf("Atlas saw %d requests, want 1", n)
		}
	}
}

// TestDeadlines ends calls by each of three causes at each stage.
func TestDeadlines(t *testing.T) {
	const head = "HTTP/1.1 201 \r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
	for _, stage := range []struct {
		name   string
		answer string
		slow   bool
		status int
	}{
		{name: "before the header"},
		{name: "in the header", answer: head[:30]},
		{name: "after the header", answer: head, status: 201},
		{name: "in the body", answer: head + `{"token":"planted`, status: 201},
		{name: "slow body", answer: "HTTP/1.1 201 \r\nContent-Type: application/json\r\n\r\n", slow: true, status: 201},
	} {
		stalls := func(t *testing.T) (reached chan struct{}, config Config) {
			reached = make(chan struct{}, 1)
			_, config = newRawTLS(t, func(conn *tls.Conn, _ *http.Request) bool {
				_, _ = io.WriteString(conn, stage.answer)
				reached <- struct{}{}
				if stage.slow {
					drip := time.NewTicker(5 * time.Millisecond)
					defer drip.Stop()
					for range drip.C {
						if _, err := io.WriteString(conn, " "); err != nil {
							return false
						}
					}
				}
				_, _ = conn.Read(make([]byte, 1)) // until the client closes
				return false
			})
			return reached, config
		}
		const soon = 500 * time.Millisecond // longer than a handshake on a busy machine
		check := func(t *testing.T, err error, want outcome, is error) {
			t.Helper()
			if got := outcomeOf(t, OpCreate, err); got != want {
				t.Errorf("got %+v, want %+v: %v", got, want, err)
			}
			if is != nil && !errors.Is(err, is) {
				t.Errorf("the error does not match %v: %v", is, err)
			}
		}
		t.Run(stage.name+"/caller's deadline", func(t *testing.T) {
			t.Parallel()
			_, config := stalls(t)
			c := newTestClient(t, config)
			ctx, cancel := context.WithTimeout(t.Context(), soon)
			defer cancel()
			_, err := c.CreateEphemeralToken(ctx, plantedJWT)
			check(t, err, outcome{KindCanceled, stage.status, 0, true}, context.DeadlineExceeded)
		})
		t.Run(stage.name+"/caller cancels", func(t *testing.T) {
			t.Parallel()
			reached, config := stalls(t)
			c := newTestClient(t, config)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			go func() {
				<-reached
				time.AfterFunc(soon/2, func() { cancel(errors.New("planted")) }) // lets the client read what was sent
			}()
			_, err := c.CreateEphemeralToken(ctx, plantedJWT)
			check(t, err, outcome{KindCanceled, stage.status, 0, true}, context.Canceled)
		})
		t.Run(stage.name+"/own cap", func(t *testing.T) {
			t.Parallel()
			_, config := stalls(t)
			config.Timeout = soon
			c := newTestClient(t, config)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err := c.CreateEphemeralToken(ctx, plantedJWT)
			check(t, err, outcome{KindTimeout, stage.status, 0, true}, nil)
		})
	}
}

// TestStalledBodyNotAwaited checks that an answer that is settled by its status does not wait for
// its body.
func TestStalledBodyNotAwaited(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		for _, status := range []int{200, 503} {
			_, config := newHTTPServer(t, http2, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(status)
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			})
			config.Timeout = time.Minute
			c := newTestClient(t, config)
			want := outcome{}
			if status == 503 {
				want = outcome{KindStatus, 503, 0, true}
			}
			err := c.DeleteEphemeralToken(t.Context(), plantedJWT)
			if got := outcomeOf(t, OpDelete, err); got != want {
				t.Errorf("HTTP/2 %v, status %d: got %+v, want %+v: %v", http2, status, got, want, err)
			}
		}
	}
}

func TestNotSent(t *testing.T) {
	_, pool := goodCertificate()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	silent := newRawServer(t, func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
	hangsUp := newRawServer(t, func(net.Conn) {})

	for _, tc := range []struct {
		name   string
		addr   string
		change func(*Client)
		want   Kind
		is     error
	}{
		{name: "connection refused", addr: closed.Addr().String(), want: KindUnreachable, is: syscall.ECONNREFUSED},
		{name: "closed in the handshake", addr: hangsUp.addr, want: KindUnreachable},
		{
			name: "handshake stalls", addr: silent.addr, want: KindUnreachable,
			change: func(c *Client) { c.transport.Load().TLSHandshakeTimeout = 50 * time.Millisecond },
		},
		{
			name: "handshake stalls until our cap", addr: silent.addr, want: KindTimeout,
			change: func(c *Client) { c.timeout = 50 * time.Millisecond },
		},
		{
			name: "name not found", addr: "atlas.invalid:443", want: KindUnreachable,
			change: func(c *Client) {
				c.transport.Load().DialContext = func(context.Context, string, string) (net.Conn, error) {
					return nil, &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "atlas.invalid", IsNotFound: true}}
				}
			},
		},
		{
			name: "dial times out", addr: silent.addr, want: KindUnreachable,
			change: func(c *Client) {
				c.transport.Load().DialContext = (&net.Dialer{Deadline: time.Now().Add(-time.Second)}).DialContext
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newTestClient(t, Config{BaseURL: "https://" + tc.addr, RootCAs: pool})
			if tc.change != nil {
				tc.change(c)
			}
			err := c.DeleteEphemeralToken(t.Context(), plantedJWT)
			if got, want := outcomeOf(t, OpDelete, err), (outcome{Kind: tc.want}); got != want {
				t.Errorf("got %+v, want %+v: %v", got, want, err)
			}
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("the error does not match %v: %v", tc.is, err)
			}
		})
	}
}
