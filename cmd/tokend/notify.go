package main

import (
	"fmt"
	"log/slog"
	"net"
	"strings"
)

// notifier tells a service manager how the program is, as sd_notify(3) does. It is a page of our own since it is a datagram; what
// it names is $NOTIFY_SOCKET, empty where nobody wants to know.
type notifier struct {
	socket string
	log    *slog.Logger
}

// ready is said once the addresses are bound, and again after a reload.
func (n notifier) ready(status string) { n.tell("READY=1", "STATUS="+status) }

// reloading goes with the time, so that the manager can tell the READY=1 that ends this reload from an earlier one.
func (n notifier) reloading() {
	n.tell("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", monotonicMicroseconds()), "STATUS=Reading the files again.")
}

// waiting is said before ready, while something has to come first.
func (n notifier) waiting(status string) { n.tell("STATUS=" + status) }

func (n notifier) stopping() { n.tell("STOPPING=1", "STATUS=Draining.") }

func (n notifier) tell(state ...string) {
	if n.socket == "" {
		return
	}
	// Go writes an abstract socket's address as systemd does, with an @.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err == nil {
		_, err = conn.Write([]byte(strings.Join(state, "\n")))
		_ = conn.Close()
	}
	if err != nil {
		n.log.Warn("the service manager cannot be told", slog.String("state", state[0]), slog.Any("cause", err))
	}
}
