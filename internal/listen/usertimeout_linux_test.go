package listen

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDeadPeer checks that the kernel closes connections of a vanished peer after 10 s. By default
// it tries for a quarter of an hour.
func TestDeadPeer(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := On(addr, Limits{})
		if err != nil {
			t.Skip(err) // a machine without IPv6
		}
		t.Cleanup(func() { _ = l.Close() })
		client, err := net.DialTimeout("tcp", l.Addr().String(), 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = accepted.Close() })
		raw, err := accepted.(*Conn).socket.Conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var timeout int
		if cerr := raw.Control(func(fd uintptr) { timeout, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) }); cerr != nil || err != nil {
			t.Fatal(cerr, err)
		}
		if got := time.Duration(timeout) * time.Millisecond; got != 10*time.Second {
			t.Errorf("%s: TCP_USER_TIMEOUT is %v, want 10 s", addr, got)
		}
	}
	l, err := On("unix:"+filepath.Join(t.TempDir(), "s"), Limits{})
	if err != nil {
		t.Fatalf("a socket file: %v", err)
	}
	_ = l.Close()
}
