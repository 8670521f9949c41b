package listen

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// peerTimeout is how long data and keepalive probes may stay unacknowledged.
const peerTimeout = 10 * time.Second

// setUserTimeout makes the kernel close connections whose peer has vanished (RFC 5482, tcp(7)).
// Accepted sockets inherit it. grpc-go sets it only on a *net.TCPConn, and net/http does not.
func setUserTimeout(_, _ string, socket syscall.RawConn) error {
	var err error
	controlErr := socket.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(peerTimeout.Milliseconds()))
	})
	return errors.Join(controlErr, err)
}

// listenUnix sets the mode on the socket before it is bound. Linux makes the file with that mode,
// so no other user can connect at any time.
func listenUnix(path string) (net.Listener, error) {
	config := net.ListenConfig{Control: func(_, _ string, socket syscall.RawConn) error {
		var err error
		controlErr := socket.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), uint32(ownerOnly)) })
		return errors.Join(controlErr, err)
	}}
	return config.Listen(context.Background(), "unix", path)
}
