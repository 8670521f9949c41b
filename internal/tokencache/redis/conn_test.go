package redis

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
)

// TestBrokenRedis sends more than was asked for, or announces more than memory can hold. Only the
// cache is lost.
func TestBrokenRedis(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t), newFakeAtlas()
	for name, extra := range map[string]string{
		"an answer too many":  ":1\r\n",
		"several":             "+OK\r\n-ERR no\r\n*1\r\n$1\r\nx\r\n",
		"a message published": ">3\r\n+message\r\n+channel\r\n+text\r\n",
		"a subscription":      ">3\r\n+subscribe\r\n+channel\r\n:1\r\n",
		"an endless string":   "$9223372036854775807\r\n",
		"an endless array":    "*9223372036854775807\r\n",
		"deep":                strings.Repeat("*1\r\n", 100_000),
		"deep attributes":     strings.Repeat("|1\r\n", 100_000),
		"a wide map":          "%9999999\r\n",
		"many wide arrays":    strings.Repeat("*999999\r\n", 1000),
		"an endless line":     "+" + strings.Repeat("x", 2*maxAnswer),
		"no protocol":         "HTTP/1.1 400 Bad Request\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy, u := server.NewProxy(), user{name, "u"}
			r := newReplica(t, w, proxy.URL(), Config{}).connected()
			_ = newReplica(t, w, proxy.URL(), Config{}) // one for which it is like that from the start
			r.wantMiss(u)
			proxy.Append(extra)
			r.eventually("Check does not say so", func() bool {
				if token, _ := r.create(u); token != w.token(name) {
					t.Errorf("got %q", token)
				}
				return r.Check() != nil
			})
			proxy.Append("")
			r.eventually("Redis is not used though it is well again", func() bool { return r.hits(u) })
		})
	}
}

// TestBoundedConn passes valid answers in pieces of any size, and fails on answers that are too
// long before memory is allocated.
func TestBoundedConn(t *testing.T) {
	t.Parallel()
	nested := strings.Repeat("*1\r\n", 1000)
	for name, tc := range map[string]struct {
		says string
		good bool
	}{
		"one of each":      {"+OK\r\n-ERR no\r\n:1\r\n_\r\n,1.5\r\n#t\r\n(12\r\n$-1\r\n*-1\r\n$0\r\n\r\n*2\r\n:1\r\n%1\r\n+a\r\n=5\r\ntxt:x\r\n~1\r\n!1\r\nx\r\n", true},
		"a long string":    {"$100000\r\n" + strings.Repeat("x", 100_000) + "\r\n", true},
		"a large number":   {":9223372036854775807\r\n", true},
		"numbers in text":  {"+1764065462000 9999999999\r\n", true},
		"a length in text": {"$12\r\n*99999999999\r\n$-1\r\n", true},
		"many small ones":  {strings.Repeat("$1\r\nx\r\n", 5000), true},
		"too long":         {"$9999999\r\n", false},
		"too long by far":  {"$9223372036854775807\r\n", false},
		"no number at all": {"$99999999999999999999999999\r\n", false},
		"with a sign":      {"$+9999999\r\n", false},
		"with zeros":       {"*00000000009999999\r\n", false},
		"with many zeros":  {"*" + strings.Repeat("0", 2*maxLine) + "9999999\r\n", false},
		"wide":             {"%9999999\r\n", false},
		"wide in all":      {strings.Repeat("*99999\r\n", 10), false},
		"after a string":   {"$1\r\nxyz*9999999\r\n", false}, // the library does not look what follows a string
		"deep":             {strings.Repeat(nested, 10), false},
		"a long line":      {"+" + strings.Repeat("x", maxAnswer), false},
	} {
		for _, small := range []bool{false, true} {
			near, far := net.Pipe()
			go func() {
				defer far.Close()
				_, _ = io.ReadFull(far, make([]byte, 4))
				_, _ = io.WriteString(far, tc.says)
			}()
			conn := bounded(near)
			if _, err := io.WriteString(conn, "PING"); err != nil {
				t.Fatal(err)
			}
			r := io.Reader(conn)
			if small && len(tc.says) < 10_000 {
				r = iotest.OneByteReader(conn)
			}
			got, err := io.ReadAll(r)
			if tc.good && (err != nil || string(got) != tc.says) || !tc.good && (!errors.Is(err, errMalformed) || string(got) == tc.says) {
				t.Errorf("%s: got %.80q, %v", name, got, err)
			}
			_ = near.Close()
		}
	}
}

// fakeRedis runs a server that answers each command with what answer returns, or closes the
// connection if that is nothing.
func fakeRedis(t *testing.T, answer func(words []string) string) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer conn.Close()
				for r := bufio.NewReader(conn); ; {
					words, err := readCommand(r)
					if err != nil {
						return
					}
					said := answer(words)
					if _, err := io.WriteString(conn, said); err != nil || said == "" {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); work.Wait() })
	return l.Addr().String()
}

func readCommand(r *bufio.Reader) (words []string, err error) {
	var n, size int
	if _, err := fmt.Fscanf(r, "*%d\r\n", &n); err != nil {
		return nil, err
	}
	for range n {
		if _, err := fmt.Fscanf(r, "$%d\r\n", &size); err != nil {
			return nil, err
		}
		word := make([]byte, size+len("\r\n"))
		if _, err := io.ReadFull(r, word); err != nil {
			return nil, err
		}
		words = append(words, string(word[:size]))
	}
	return words, nil
}

// helloAnswer is what a Redis says to HELLO.
const helloAnswer = "*4\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n"

// TestHostileRedis announces more than memory can hold, or never ends. Only Redis is lost.
func TestHostileRedis(t *testing.T) {
	t.Parallel()
	for name, says := range map[string]string{
		"a string of no end":  "$9223372036854775807\r\n",
		"a long string":       "$99999999999999\r\n",
		"a long array":        "*99999999999999\r\n",
		"a long map":          "%99999999999999\r\n",
		"arrays in arrays":    strings.Repeat("*1\r\n", 1<<20),
		"wide arrays in them": strings.Repeat("*999999\r\n", 1<<16),
		"attributes":          strings.Repeat("|1\r\n", 1<<20),
		"an array as a key":   "%1\r\n*0\r\n+x\r\n",
		"another answer":      "*5\r\n+a\r\n+b\r\n+c\r\n+d\r\n:1\r\n",
		"too few":             "*1\r\n:1\r\n",
		"nothing":             "$-1\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			addr := fakeRedis(t, func(words []string) string {
				if strings.EqualFold(words[0], "HELLO") {
					return helloAnswer
				}
				return says
			})
			r := newReplica(t, newFakeAtlas(), "redis://"+addr, Config{})
			for range 10 {
				r.wantMiss(user{orgA, "u"})
			}
			if r.Check() == nil {
				t.Error("Check has nothing to say")
			}
		})
	}
}

// TestScriptsAreNotRepeated does not repeat a move whose answer was lost. Another delete may have
// moved the fence since, and an old epoch would bring back what that has removed.
func TestScriptsAreNotRepeated(t *testing.T) {
	t.Parallel()
	for name, cluster := range map[string]bool{"single": false, "cluster": true} {
		t.Run(name, func(t *testing.T) {
			var moves atomic.Int64
			var addr string
			addr = fakeRedis(t, func(words []string) string {
				switch {
				case strings.EqualFold(words[0], "HELLO"):
					return helloAnswer
				case strings.EqualFold(words[0], "CLUSTER"):
					_, port, _ := net.SplitHostPort(addr)
					return "*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n+127.0.0.1\r\n:" + port + "\r\n"
				case words[1] == scriptHold.Hash():
					moves.Add(1)
				case words[1] == scriptDrop.Hash():
					return ":0\r\n" // of connect
				}
				return ""
			})
			url := "redis://" + addr
			if cluster {
				url += "?addr=" + addr
			}
			r := newReplica(t, newFakeAtlas(), url, Config{})
			r.eventually("not connected", func() bool { return r.Check() == nil })
			r.Hold(orgA, "hold")
			if n := moves.Load(); n != 1 {
				t.Errorf("sent %d times", n)
			}
		})
	}
}

// TestNarrowACL allows only the commands of the scripts. The operator's guide has this list.
func TestNarrowACL(t *testing.T) {
	t.Parallel()
	const password = "planted-password"
	server := redistest.Start(t)
	server.Command(strings.Fields("ACL SETUSER tokend reset on >" + password + " ~{tokend}:* +eval +evalsha +info +time +pttl +pexpire" +
		" +hgetall +hget +hmget +hset +hdel +get +set +del")...)
	wantShared(t, newFakeAtlas(), Config{URL: "redis://tokend@" + server.Addr(), Password: func() string { return password }})
	if clients := server.Command("CLIENT", "LIST"); !strings.Contains(clients, "name=tokend ") {
		t.Errorf("there is no tokend among %s", clients)
	}
}

// TestOldRedis reports a Redis, or a proxy, that does not know a command.
func TestOldRedis(t *testing.T) {
	t.Parallel()
	addr := fakeRedis(t, func(words []string) string {
		return "-ERR unknown command `" + words[0] + "`, with args beginning with: \r\n"
	})
	r := newReplica(t, newFakeAtlas(), "redis://"+addr, Config{})
	r.eventually("no error", func() bool { return r.Check() != nil && strings.Contains(r.Check().Error(), string(ErrOld)) })
}
