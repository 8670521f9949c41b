package listen

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// ownerOnly is the mode of a new socket file, whatever the umask.
const ownerOnly fs.FileMode = 0o600

// IsSocket reports whether addr is a socket file.
func IsSocket(addr string) bool { return strings.HasPrefix(addr, unixPrefix) }

// Share sets the mode of a listener's socket file; connecting takes write permission. It does
// nothing for mode 0 and for a listener on host:port.
func (l *Listener) Share(mode fs.FileMode) error {
	if l.Addr().Network() != "unix" || mode == 0 {
		return nil
	}
	return os.Chmod(l.Addr().String(), mode)
}

// bindSocket makes a socket file that only its owner can connect to. It replaces a stale one.
func bindSocket(path string) (net.Listener, error) {
	l, err := listenUnix(path)
	if errors.Is(err, syscall.EADDRINUSE) && isStaleSocket(path) {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
		return listenUnix(path)
	}
	return l, err
}

func isStaleSocket(path string) bool {
	info, err := os.Stat(path)
	if err != nil || info.Mode().Type() != os.ModeSocket {
		return false
	}
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(context.Background(), "unix", path)
	if err == nil {
		_ = conn.Close()
		return false
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}
