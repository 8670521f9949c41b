//go:build !linux

package listen

import "syscall"

// setUserTimeout does nothing: the option is specific to Linux. Keepalive detects a vanished peer
// later.
func setUserTimeout(_, _ string, _ syscall.RawConn) error { return nil }
