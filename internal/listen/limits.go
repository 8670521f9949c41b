package listen

import (
	"net"
	"net/netip"
)

// Limits bound the connections that a Listener has open at a time. A connection beyond them is accepted and closed at
// once: in the kernel's queue it would block those behind it, and its client would wait instead of trying another
// replica.
type Limits struct {
	// Total is the most connections that may be open; 0 is no limit.
	Total int
	// PerPeer is the most connections that one address may have; 0 is no limit. IPv6 addresses count by their /64, since
	// one machine has all of that. It does not apply to addresses of this machine, which usually belong to proxies,
	// unless Local is set.
	PerPeer int
	Local   bool
	// EvictIdle makes room for a new connection by closing the one that has been idle longest, of the same peer if it is
	// the peer's limit. Conn.SetBusy says which connections are not idle.
	EvictIdle bool
	// Requests, if not nil, bounds the requests that are open on the connections.
	Requests *Requests
	// Refused is called for each connection that is closed because of a limit. It must not block.
	Refused func(limit string, peer net.Addr)
}

// The limits that a connection can be closed for.
const (
	TotalLimit    = "listener"
	PerPeerLimit  = "peer"
	RequestsLimit = "requests"
)

func (l Limits) refused(limit string, peer net.Addr) {
	if l.Refused != nil {
		l.Refused(limit, peer)
	}
}

// peerOf returns what a connection counts for: an address, or an IPv6 /64. The zero Prefix counts for nothing: a socket
// file, and an address of this machine unless local is set.
func peerOf(addr net.Addr, local bool) netip.Prefix {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	if !ip.IsValid() || ip.IsLoopback() && !local {
		return netip.Prefix{}
	}
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	peer, _ := ip.Prefix(bits) // cannot fail: the address is valid and that long
	return peer
}

// refuse closes a connection with a reset, so that the kernel keeps nothing of it.
func refuse(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // fails only if the peer was faster
	}
	_ = c.Close()
}
