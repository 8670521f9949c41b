// Package listen binds the addresses that the service is reached at. It knows what an address may be, and which connections
// are open; it knows nothing of what is spoken on them.
package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
)

const unixPrefix = "unix:"

// maxPath is the longest path that the kernel takes for a socket file: sockaddr_un less the final zero.
const maxPath = len(syscall.RawSockaddrUnix{}.Path) - 1

// Validate reports an address that cannot be listened on. An empty one is no address, and not an error. A socket file is
// allowed if sockets is set.
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
		case len(path) > maxPath:
			return fmt.Errorf("the path of a socket file may have %d bytes, and this one has %d: choose a shorter one", maxPath, len(path))
		}
		return nil
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

// IsLocal reports whether only this machine can reach addr: a loopback address, "localhost", or a socket file. What is
// not an address at all is somebody else's to report.
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

// On binds host:port or unix:/path. A socket file that nobody listens on any more, as a killed process leaves it, is
// replaced; only its owner can connect, until Share says otherwise.
func On(addr string, limits Limits) (*Listener, error) {
	l, err := bind(addr)
	if err != nil {
		return nil, explain(err)
	}
	return Track(l, limits), nil
}

// Track returns a Listener on what is bound already.
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

// ErrInUse is the cause if somebody else listens on an address.
var ErrInUse = errors.New("the address is in use: stop the process that holds it, or choose another")

// explain says in words what the operator can do about the usual failures.
func explain(err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return ErrInUse
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("not permitted: choose a port above 1023 or a directory that this user may write: %w", errors.Unwrap(err))
	}
	return err
}
