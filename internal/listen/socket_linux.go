package listen

import (
	"context"
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

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
