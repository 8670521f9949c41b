//go:build !linux

package listen

import (
	"context"
	"net"
	"os"
	"syscall"
)

// setUserTimeout does nothing: the option is specific to Linux. Keepalive detects a vanished peer
// later.
func setUserTimeout(_, _ string, _ syscall.RawConn) error { return nil }

// listenUnix restricts the file as soon as it exists.
func listenUnix(path string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, ownerOnly); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}
