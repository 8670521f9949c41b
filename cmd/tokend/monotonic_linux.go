package main

import "golang.org/x/sys/unix"

// monotonicMicroseconds is the time of the clock that systemd compares with.
func monotonicMicroseconds() int64 {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // cannot fail: the clock is always there
	return now.Nano() / 1000
}
