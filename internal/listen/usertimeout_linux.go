package listen

import (
	"errors"
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
