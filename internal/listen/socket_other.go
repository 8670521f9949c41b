//go:build !linux

package listen

import (
	"context"
	"net"
	"os"
)

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
