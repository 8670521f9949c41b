package listen

import (
	"net"
	"net/netip"
)

// Limits bound the open connections of a Listener. A connection beyond them is accepted and closed
// at once, so that its client tries another replica; in the kernel's queue it would block others.
type Limits struct {
	// Total is how many connections may be open; 0 is no limit.
	Total int
	// PerPeer is how many connections one address may have; 0 is no limit. IPv6 addresses count by
	// their /64, since one machine has a whole /64. Loopback addresses, usually of proxies, are
	// exempt unless Local is set.
	PerPeer int
	Local   bool
	// EvictSilent makes room for a new connection by closing the one that has been silent longest,
	// of the same peer if the limit is PerPeer. A request in progress does not spare it: a client
	// can keep one up by sending no body, or by not reading the answer.
	EvictSilent bool
	// Requests, if not nil, bounds the requests that are open on the connections.
	Requests *Requests
	// Refused is called for each connection that is closed because of a limit. It must not block.
	Refused func(limit string, peer net.Addr)
}

// The names of the limits that Limits.Refused reports.
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

// peerOf returns the peer that a connection counts for: an address, or an IPv6 /64. It returns the
// zero Prefix, which is not limited, for socket files, and for loopback unless local is set.
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

// refuse closes a connection with a reset, so that the kernel keeps no state of it.
func refuse(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // fails only if the peer has closed it
	}
	_ = c.Close()
}
