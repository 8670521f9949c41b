//go:build !linux

package listen

import "syscall"

// setUserTimeout does nothing: the option is Linux's. Keepalive finds a peer that is gone, later.
func setUserTimeout(_, _ string, _ syscall.RawConn) error { return nil }
