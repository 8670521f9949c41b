package listen

import (
	"errors"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// peerTimeout is how long a peer may leave what is sent to it unacknowledged, or keepalive probes of an idle connection.
const peerTimeout = 10 * time.Second

// setUserTimeout makes the kernel close connections whose peer is gone without a word (RFC 5482, tcp(7)). What is accepted
// inherits it from the listening socket. grpc-go would set it, but on a *net.TCPConn only, and net/http does not.
func setUserTimeout(_, _ string, socket syscall.RawConn) error {
	var err error
	controlErr := socket.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(peerTimeout.Milliseconds()))
	})
	return errors.Join(controlErr, err)
}
