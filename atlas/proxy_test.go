package atlas

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
)

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
