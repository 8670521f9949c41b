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

// Error says which address is wrong or could not be bound. It may be one of several, joined.
type Error struct {
	Listener string // "gRPC", "HTTP" or "admin"
	Addr     string
	Err      error
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s address %q: %v", e.Listener, e.Addr, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Validate reports an address that cannot be listened on, as an *Error. An empty one is no address, and no mistake.
func Validate(name, addr string) error {
	if addr == "" {
		return nil
	}
	if path, ok := strings.CutPrefix(addr, unixPrefix); ok {
		switch {
		case name != "gRPC":
			return &Error{name, addr, errors.New("only gRPC is served on a socket file: it must be host:port")}
		case path == "":
			return &Error{name, addr, errors.New("it must be unix:/path")}
		}
		return nil
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return &Error{name, addr, errors.New("it must be host:port, such as 127.0.0.1:9090")}
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return &Error{name, addr, errors.New("the port must be a number from 0 to 65535")}
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
	return &Listener{Listener: l, limits: limits, conns: make(map[*conn]struct{}), peers: make(map[netip.Prefix]int)}
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
