package tokencache

import (
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/server/tokencache/redistest"
)

// A server that says more than it was asked, or announces more than there is memory for, costs us Redis and no more. The
// client library would end the process.
func TestABrokenRedisDoesNotEndTheProcess(t *testing.T) {
	t.Parallel()
	type broken struct {
		name    string
		jwt     atlas.JWT
		replica *replica
		proxy   *redistest.Proxy
	}
	var all []broken
	server, w := redistest.Start(t), newFakeAtlas()
	for name, extra := range map[string]string{
		"an answer too many":  ":1\r\n",
		"several":             "+OK\r\n-ERR no\r\n*1\r\n$1\r\nx\r\n",
		"a message published": ">3\r\n+message\r\n+channel\r\n+text\r\n",
		"a subscription":      ">3\r\n+subscribe\r\n+channel\r\n:1\r\n",
		"an endless string":   "$9223372036854775807\r\n",
		"an endless array":    "*9223372036854775807\r\n",
		"deep":                strings.Repeat("*1\r\n", 100_000),
		"no protocol":         "HTTP/1.1 400 Bad Request\r\n\r\n",
	} {
		proxy := server.NewProxy()
		r := newReplica(t, w, proxy.URL(), Config{}).connected()
		_ = newReplica(t, w, proxy.URL(), Config{}) // one for which it is like that from the start
		r.wantMiss(newJWT(name, "u", time.Time{}))
		proxy.Append(extra)
		all = append(all, broken{name, newJWT(name, "u", time.Time{}), r, proxy})
	}
	for _, b := range all {
		for range 20 {
			if token, _ := b.replica.token(b.jwt); token != w.token(b.name) {
				t.Errorf("%s: got %q", b.name, string(token))
			}
		}
		b.replica.eventually(b.name+": nobody is told", func() bool {
			_, _ = b.replica.token(b.jwt)
			return b.replica.Check() != nil
		})
	}
	for _, b := range all {
		b.proxy.Append("")
	}
	for _, b := range all {
		b.replica.eventually(b.name+": Redis is not used though it is well again", func() bool {
			_, status := b.replica.token(b.jwt)
			return status.Hit
		})
	}
}

// answers lets a guard send commands and returns what it reads of what the server says, in pieces that are as small as can be
// or not.
func answers(t *testing.T, publishes, small bool, commands, says string) (string, error) {
	t.Helper()
	near, far := net.Pipe()
	g := &guardedConn{Conn: near, publishes: publishes}
	go func() {
		defer far.Close()
		_, _ = io.ReadFull(far, make([]byte, len(commands)))
		_, _ = io.WriteString(far, says)
	}()
	defer near.Close()
	if _, err := io.WriteString(g, commands); err != nil {
		return "", err
	}
	r := io.Reader(g)
	if small {
		r = iotest.OneByteReader(g)
	}
	got, err := io.ReadAll(r)
	return string(got), err
}

func TestGuardPassesOnWhatIsRight(t *testing.T) {
	const ping, subscribe = "*1\r\n$4\r\nPING\r\n", "*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nx\r\n"
	const published = ">2\r\n+message\r\n$4\r\na\r\nb\r\n"
	long := "$" + strconv.Itoa(maxMessage/2) + "\r\n" + strings.Repeat("\n", maxMessage/2) + "\r\n"
	for _, tc := range []struct {
		name, commands, says, want string
		publishes                  bool
		err                        error
	}{
		{name: "one of each", commands: strings.Repeat(ping, 15), says: "+PONG\r\n-ERR no\r\n:1\r\n_\r\n,1.5\r\n#t\r\n(12\r\n$-1\r\n*-1\r\n$0\r\n\r\n" +
			"*0\r\n*2\r\n*1\r\n$2\r\n\r\n\r\n:1\r\n%1\r\n+a\r\n=5\r\ntxt:x\r\n~1\r\n!1\r\nx\r\n%0\r\n"},
		{name: "long", commands: ping, says: long},
		{name: "published", commands: subscribe + ping, says: published + "+PONG\r\n" + published, publishes: true},
		{name: "not subscribed", commands: ping, says: "+PONG\r\n" + published, want: "+PONG\r\n", err: errUnasked},
		{name: "more than was asked", commands: ping, says: "+PONG\r\n+PONG\r\n", want: "+PONG\r\n", err: errUnasked},
		{name: "an answer to a subscription", commands: subscribe, says: "+OK\r\n", publishes: true, err: errUnasked},
		{name: "a long string", commands: ping, says: "$4194305\r\n", err: errMalformed},
		{name: "a long array", commands: ping, says: "*65537\r\n", err: errMalformed},
		{name: "a long map", commands: ping, says: "%32769\r\n", err: errMalformed},
		{name: "a long line", commands: ping, says: "+" + strings.Repeat("x", maxMessage) + "\r\n", err: errMalformed},
		{name: "long in all", commands: ping, says: "*3\r\n" + long + long + long, err: errMalformed},
		{name: "negative", commands: ping, says: "$-2\r\n", err: errMalformed},
		{name: "no number", commands: ping, says: "*x\r\n", err: errMalformed},
		{name: "streamed", commands: ping, says: "$?\r\n", err: errMalformed},
		{name: "empty line", commands: ping, says: "\r\n", err: errMalformed},
	} {
		for _, small := range []bool{false, true} {
			got, err := answers(t, tc.publishes, small && len(tc.says) < maxHead*4, tc.commands, tc.says)
			if tc.err == nil {
				tc.want = tc.says
			}
			if !errors.Is(err, tc.err) {
				t.Errorf("%s: %v, want %v", tc.name, err, tc.err)
			}
			// Of what is wrong, the end at least is not passed on.
			if !strings.HasPrefix(got, tc.want) || tc.err == nil && got != tc.want || tc.err != nil && got == tc.says {
				t.Errorf("%s: got %.80q", tc.name, got)
			}
		}
	}
}
