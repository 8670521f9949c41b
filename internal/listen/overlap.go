package listen

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Overlap reports whether only one of two listeners can have its address, as far as the addresses say: the same port on the
// same host, or on all of them. Port 0 is another port each time, and what is no host:port overlaps with nothing.
func Overlap(a, b string) bool {
	hostA, portA, okA := split(a)
	hostB, portB, okB := split(b)
	if !okA || !okB || portA != portB || portA == 0 {
		return false
	}
	return hostA == hostB || covers(hostA, hostB) || covers(hostB, hostA)
}

// split has the host as the kernel has it, so that two ways of writing one are equal.
func split(addr string) (host string, port int, ok bool) {
	if IsSocket(addr) {
		return "", 0, false
	}
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, false
	}
	port, err = strconv.Atoi(text)
	host = strings.ToLower(host)
	if host == "" {
		host = "::"
	}
	if host == "localhost" {
		host = "127.0.0.1" // which net.Listen takes, if there is the choice
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.Unmap().String()
	}
	return host, port, err == nil
}

// covers reports whether a listener on host all has that host too. One on :: has IPv4 as well.
func covers(all, host string) bool {
	ip, err := netip.ParseAddr(host)
	return all == "::" || all == "0.0.0.0" && (err != nil || ip.Is4())
}
