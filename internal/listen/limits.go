package listen

import (
	"net"
	"net/netip"
)

// Limits bound the connections that a Listener has open at a time. What is beyond them is accepted and closed at once: left in
// the kernel's queue, it would keep out whoever comes after it, and its caller would wait rather than try another replica.
type Limits struct {
	// Total is how many there may be; 0 is no limit.
	Total int
	// PerPeer is how many of them one address of another machine may have; 0 is no limit. IPv6 addresses count by their /64,
	// since one machine has all of that. It does not hold for this machine's own: they are proxies' more often than not.
	PerPeer int
	// Refused is told of each connection that is closed for which of the limits. It must not block.
	Refused func(limit string, peer net.Addr)
}

// The limits that a connection can be refused for.
const (
	TotalLimit   = "listener"
	PerPeerLimit = "peer"
)

// peerOf is whom a connection counts for: an address, or an IPv6 /64. The zero Prefix is this machine.
func peerOf(addr net.Addr) netip.Prefix {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	if !ip.IsValid() || ip.IsLoopback() {
		return netip.Prefix{}
	}
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	peer, _ := ip.Prefix(bits) // cannot fail: it is valid, and that long
	return peer
}

// refuse closes a connection with a reset, so that nothing of it stays with the kernel.
func refuse(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // fails only if the peer was faster
	}
	_ = c.Close()
}
