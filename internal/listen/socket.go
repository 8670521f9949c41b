package listen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// Socket says who on this machine may connect to a socket file: to connect is to write. The zero value is its owner alone.
type Socket struct {
	Mode fs.FileMode // default 0600
	// Group, if not nil, is the id of the group that the file is given.
	Group *int
}

// ownerOnly is what a socket file is made with, whatever the umask: nobody connects before it has its group.
const ownerOnly fs.FileMode = 0o600

// IsSocket reports whether addr is a socket file.
func IsSocket(addr string) bool { return strings.HasPrefix(addr, unixPrefix) }

// share lets those connect that s names.
func (s Socket) share(path string) error {
	if s.Group != nil {
		if err := os.Chown(path, -1, *s.Group); err != nil {
			return fmt.Errorf("it cannot be given to the group: this user has to be in it: %w", errors.Unwrap(err))
		}
	}
	mode := s.Mode
	if mode == 0 {
		mode = ownerOnly
	}
	return os.Chmod(path, mode)
}

// Share has a listener on a socket file go by s. One on host:port has no file.
func (l *Listener) Share(s Socket) error {
	if l.Addr().Network() != "unix" {
		return nil
	}
	return s.share(l.Addr().String())
}

// bindSocket makes a socket file that only its owner can connect to. One that nobody listens on any more is replaced.
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
