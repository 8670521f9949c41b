package listen

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

// fakeListener accepts connections from the addresses that a test sends.
type fakeListener struct {
	net.Listener
	from chan string
}

func (l fakeListener) Accept() (net.Conn, error) {
	addr, ok := <-l.from
	if !ok {
		return nil, net.ErrClosed
	}
	return &fakeConn{remote: addr}, nil
}

type fakeConn struct {
	net.Conn
	remote string
	closed int
}

func (c *fakeConn) RemoteAddr() net.Addr {
	if c.remote == "unix" {
		return &net.UnixAddr{Net: "unix"}
	}
	addr, err := net.ResolveTCPAddr("tcp", c.remote)
	if err != nil {
		panic(err)
	}
	return addr
}

func (c *fakeConn) Close() error {
	c.closed++
	return nil
}

// arrive accepts connections from these addresses in turn. It returns those accepted and the limits
// for which the others were refused.
func arrive(t *testing.T, limits Limits, from ...string) (l *Listener, in []net.Conn, refused []string) {
	t.Helper()
	arriving := make(chan string, len(from))
	for _, addr := range from {
		arriving <- addr
	}
	close(arriving)
	limits.Refused = func(limit string, _ net.Addr) { refused = append(refused, limit) }
	l = Track(fakeListener{from: arriving}, limits)
	for {
		c, err := l.Accept()
		if err != nil {
			return l, in, refused
		}
		in = append(in, c)
	}
}

func TestLimits(t *testing.T) {
	for name, tc := range map[string]struct {
		limits  Limits
		from    []string
		in      int
		refused string
	}{
		"none":                  {Limits{}, []string{"192.0.2.1:1", "192.0.2.1:2", "192.0.2.1:3"}, 3, ""},
		"total":                 {Limits{Total: 2}, []string{"192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"}, 2, TotalLimit},
		"total of this machine": {Limits{Total: 2}, []string{"127.0.0.1:1", "unix", "127.0.0.1:2"}, 2, TotalLimit},
		"one IPv4 address":      {Limits{Total: 9, PerPeer: 2}, []string{"192.0.2.1:1", "192.0.2.2:1", "192.0.2.1:2", "192.0.2.1:3"}, 3, PerPeerLimit},
		"IPv4 in IPv6":          {Limits{Total: 9, PerPeer: 1}, []string{"192.0.2.1:1", "[::ffff:192.0.2.1]:2"}, 1, PerPeerLimit},
		"one IPv6 network":      {Limits{Total: 9, PerPeer: 2}, []string{"[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8::ffff:0:0:3]:1"}, 2, PerPeerLimit},
		"two IPv6 networks":     {Limits{Total: 9, PerPeer: 1}, []string{"[2001:db8:0:1::1]:1", "[2001:db8:0:2::1]:1"}, 2, ""},
		"link-local":            {Limits{Total: 9, PerPeer: 1}, []string{"[fe80::1%lo]:1", "[fe80::2%lo]:1"}, 1, PerPeerLimit},
		"proxies on this host":  {Limits{Total: 9, PerPeer: 1}, []string{"127.0.0.1:1", "127.0.0.6:1", "127.0.0.6:2", "[::1]:1", "[::1]:2", "unix", "unix"}, 7, ""},
	} {
		t.Run(name, func(t *testing.T) {
			l, in, refused := arrive(t, tc.limits, tc.from...)
			if len(in) != tc.in || l.Open() != tc.in || len(refused) != len(tc.from)-tc.in {
				t.Errorf("%d of %d were accepted and %d refused, want %d accepted", len(in), len(tc.from), len(refused), tc.in)
			}
			for _, limit := range refused {
				if limit != tc.refused {
					t.Errorf("refused for %q, want %q", limit, tc.refused)
				}
			}
		})
	}
}

// TestCloseFreesPlace checks that closing a connection frees its place once.
func TestCloseFreesPlace(t *testing.T) {
	arriving := make(chan string, 9)
	l := Track(fakeListener{from: arriving}, Limits{Total: 2, PerPeer: 1})
	accept := func(from string) net.Conn {
		arriving <- from
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := accept("192.0.2.1:1")
	_ = first.Close()
	_ = first.Close() // as net/http and grpc-go do now and then
	second, third := accept("192.0.2.1:2"), accept("192.0.2.2:1")
	if l.Open() != 2 {
		t.Fatalf("%d are open, want 2", l.Open())
	}
	l.CloseAll()
	if l.Open() != 0 || len(l.peers) != 0 {
		t.Errorf("%d connections of %d peers are left", l.Open(), len(l.peers))
	}
	for _, c := range []net.Conn{second, third} {
		if c.(*Conn).socket.Conn.(*fakeConn).closed == 0 {
			t.Error("a connection is not closed")
		}
	}
}

// TestRefusedConnectionIsReset checks that a refused TCP connection is reset at once.
func TestRefusedConnectionIsReset(t *testing.T) {
	refused := make(chan string, 1)
	l, err := On("127.0.0.1:0", Limits{Total: 1, Refused: func(limit string, _ net.Addr) { refused <- limit }})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			if _, err := l.Accept(); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { l.CloseAll(); _ = l.Close() })
	first, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = first.Close() })
	second, err := net.Dial("tcp", l.Addr().String()) // the kernel's queue keeps the order
	if err == nil {                                   // else the reset was faster
		t.Cleanup(func() { _ = second.Close() })
		_ = second.SetDeadline(time.Now().Add(20 * time.Second))
		_, err = second.Read(make([]byte, 1))
	}
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the second connection is open: %v", err)
	}
	if got := <-refused; got != TotalLimit {
		t.Errorf("refused for %q", got)
	}
}

// TestFault73EvictSilent checks that a new connection replaces the one that has been silent
// longest, of its own peer if that has too many.
func TestFault73EvictSilent(t *testing.T) {
	arriving := make(chan string, 1)
	var reasons []string
	l := Track(fakeListener{from: arriving}, Limits{
		Total: 4, PerPeer: 2, Local: true, EvictSilent: true, Refused: func(limit string, _ net.Addr) { reasons = append(reasons, limit) },
	})
	accept := func(from string) *Conn {
		t.Helper()
		arriving <- from
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return c.(*Conn)
	}
	closed := func(c *Conn) bool { return c.socket.Conn.(*fakeConn).closed > 0 }
	a, b := accept("127.0.0.1:1"), accept("127.0.0.1:2")
	a.socket.last.Store(time.Now().Add(time.Hour).UnixNano())
	c := accept("127.0.0.1:3")
	if closed(a) || !closed(b) || closed(c) {
		t.Errorf("closed: the active one %v, the silent one %v, the new one %v", closed(a), closed(b), closed(c))
	}
	d, e := accept("192.0.2.1:1"), accept("192.0.2.1:2")
	f := accept("192.0.2.2:1") // the listener is full
	if !closed(c) || closed(d) || closed(e) || closed(f) {
		t.Errorf("closed: the longest silent %v, others %v %v, the new one %v", closed(c), closed(d), closed(e), closed(f))
	}
	if l.Open() != 4 || len(reasons) != 2 || reasons[0] != PerPeerLimit || reasons[1] != TotalLimit {
		t.Errorf("%d are open, refused for %q", l.Open(), reasons)
	}
	_ = b.Close() // by its server, later
	if l.Open() != 4 {
		t.Errorf("%d are open once the server has closed what was evicted", l.Open())
	}
}
