package listen

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestSocket checks that a socket file is private to its owner until it is shared, whatever the
// umask.
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
	for _, want := range []fs.FileMode{0o660, 0o666, 0o600} {
		if err := l.Share(want); err != nil {
			t.Fatal(err)
		}
		mode(want)
	}
	tcp, err := On("127.0.0.1:0", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tcp.Close() })
	if err := tcp.Share(0o660); err != nil {
		t.Errorf("a port: %v", err)
	}
}
