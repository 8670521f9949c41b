package listen

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// Whatever the umask, a socket file is its owner's alone until it is shared, and then exactly those connect who are named.
func TestSocket(t *testing.T) {
	before := syscall.Umask(0)
	t.Cleanup(func() { syscall.Umask(before) })
	path := filepath.Join(t.TempDir(), "s")
	mode := func(want fs.FileMode) {
		t.Helper()
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("its mode is %v, %v, want %v", info.Mode().Perm(), err, want)
		}
	}
	l, err := On("unix:"+path, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	mode(0o600)
	syscall.Umask(0o077)
	group := os.Getgid()
	for _, s := range []Socket{{Mode: 0o660, Group: &group}, {Mode: 0o666}, {}} {
		if err := l.Share(s); err != nil {
			t.Fatal(err)
		}
		want := s.Mode
		if want == 0 {
			want = 0o600
		}
		mode(want)
	}
	if info, err := os.Stat(path); err != nil || info.Sys().(*syscall.Stat_t).Gid != uint32(group) {
		t.Errorf("its group is another: %v", err)
	}
	tcp, err := On("127.0.0.1:0", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tcp.Close() })
	if err := tcp.Share(Socket{Mode: 0o660}); err != nil {
		t.Errorf("a port: %v", err)
	}
}

func TestOverlap(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"127.0.0.1:1", "127.0.0.1:1", true},
		{"127.0.0.1:1", "127.0.0.1:2", false},
		{"127.0.0.1:0", "127.0.0.1:0", false},
		{"127.0.0.1:1", "127.0.0.2:1", false},
		{"127.0.0.1:1", "0.0.0.0:1", true},
		{"127.0.0.1:1", "[::]:1", true},
		{":1", "0.0.0.0:1", true},
		{":1", "[::1]:1", true},
		{"localhost:1", ":1", true},
		{"localhost:1", "127.0.0.1:1", true},
		{"localhost:1", "LOCALHOST:01", true},
		{"0.0.0.0:1", "[::1]:1", false},
		{"[::1]:1", "[0:0:0:0:0:0:0:1]:1", true},
		{"[::ffff:127.0.0.1]:1", "127.0.0.1:1", true},
		{"a.internal:1", "b.internal:1", false},
		{"a.internal:1", "a.internal:1", true},
		{"", "", false},
		{"unix:/s", ":1", false},
		{"wrong", "wrong", false},
	} {
		if got := Overlap(c.a, c.b); got != c.want {
			t.Errorf("Overlap(%q, %q) = %v", c.a, c.b, got)
		}
		if got := Overlap(c.b, c.a); got != c.want {
			t.Errorf("Overlap(%q, %q) = %v", c.b, c.a, got)
		}
	}
}
