package listen

import (
	"context"
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// listenUnix makes the socket file with the mode of the socket, which Linux goes by: at no time can anybody else connect.
func listenUnix(path string) (net.Listener, error) {
	config := net.ListenConfig{Control: func(_, _ string, socket syscall.RawConn) error {
		var err error
		controlErr := socket.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), uint32(ownerOnly)) })
		return errors.Join(controlErr, err)
	}}
	return config.Listen(context.Background(), "unix", path)
}
