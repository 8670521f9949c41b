// Package listen binds the service's addresses, does TLS on the connections, and limits connections
// and the requests open on them.
package listen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const unixPrefix = "unix:"

// maxPath is the longest path of a socket file: sockaddr_un without the final zero.
const maxPath = len(syscall.RawSockaddrUnix{}.Path) - 1

// CheckPath returns an error if path is too long for a socket file.
func CheckPath(path string) error {
	if len(path) > maxPath {
		return fmt.Errorf("the path of a socket file may have %d bytes, and this one has %d: choose a shorter one", maxPath, len(path))
	}
	return nil
}

// Validate returns what is wrong with an address. An empty one is valid. A socket file is allowed
// if sockets is set.
func Validate(addr string, sockets bool) error {
	if addr == "" {
		return nil
	}
	if path, ok := strings.CutPrefix(addr, unixPrefix); ok {
		switch {
		case !sockets:
			return errors.New("only gRPC is served on a socket file: it must be host:port")
		case path == "":
			return errors.New("it must be unix:/path")
		case path[0] == '@':
			return errors.New("it is not a file but an abstract socket, to which every user could connect: it must be unix:/path")
		}
		return CheckPath(path)
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return errors.New("it must be host:port, such as 127.0.0.1:9090")
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return errors.New("the port must be a number from 0 to 65535")
	}
	return nil
}

// IsLocal reports whether only this machine can reach addr: a loopback address, "localhost", or a
// socket file. It returns true for an invalid address, which Validate reports.
func IsLocal(addr string) bool {
	if strings.HasPrefix(addr, unixPrefix) {
		return true
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// On binds host:port or unix:/path. It replaces a socket file that a killed process has left. Only
// the owner can connect to a socket file, unless Share changes that.
func On(addr string, limits Limits) (*Listener, error) {
	l, err := bind(addr)
	if err != nil {
		return nil, explain(err)
	}
	return Track(l, limits), nil
}

// Track returns a Listener that accepts from l.
func Track(l net.Listener, limits Limits) *Listener {
	return &Listener{Listener: l, limits: limits, conns: make(map[*Conn]struct{}), peers: make(map[netip.Prefix]int)}
}

func bind(addr string) (net.Listener, error) {
	path, isUnix := strings.CutPrefix(addr, unixPrefix)
	if !isUnix {
		return (&net.ListenConfig{Control: setUserTimeout}).Listen(context.Background(), "tcp", addr)
	}
	return bindSocket(path)
}

// ErrInUse means that another process listens on the address.
var ErrInUse = errors.New("the address is in use: stop the process that holds it, or choose another")

// explain adds advice to the usual errors.
func explain(err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return ErrInUse
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("not permitted: choose a port above 1023 or a directory that this user may write: %w", errors.Unwrap(err))
	}
	return err
}

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
