package listen

import (
	"crypto/tls"
	"math"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Listener accepts connections within its limits, and tracks the open ones. On and Track make one.
type Listener struct {
	net.Listener
	limits Limits

	tls             *tls.Config
	handshakeFailed func(peer net.Addr, err error)
	noHTTP1         string

	mu    sync.Mutex
	conns map[*Conn]struct{}   // guarded by mu; the open ones
	peers map[netip.Prefix]int // guarded by mu; open connections of each peer
}

// Secure makes the listener serve TLS. It calls failed, which must not block, for each failed
// handshake, unless the client closed the connection before it sent anything, as TCP probes do.
func (l *Listener) Secure(config *tls.Config, failed func(peer net.Addr, err error)) {
	l.tls, l.handshakeFailed = config, failed
}

// RequireHTTP2 makes the listener answer requests of HTTP/1 with the text.
func (l *Listener) RequireHTTP2(text string) { l.noHTTP1 = text }

// Accept implements net.Listener. It returns only connections within the limits, each a *Conn.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		accepted, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := newConn(l, accepted)
		limit, evicted := l.admit(c)
		if evicted != nil {
			evicted.abort()
			l.limits.refused(limit, evicted.peerAddr())
		} else if limit != "" {
			refuse(accepted)
			l.limits.refused(limit, accepted.RemoteAddr())
			continue
		}
		return c, nil
	}
}

// admit adds c to the open connections. If that exceeds a limit, it returns the limit and the
// connection to close in place of c, nil if that is c.
func (l *Listener) admit(c *Conn) (limit string, evicted *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.limits.PerPeer > 0 && c.peer.IsValid() && l.peers[c.peer] >= l.limits.PerPeer:
		limit, evicted = PerPeerLimit, l.longestSilent(func(other *Conn) bool { return other.peer == c.peer })
	case l.limits.Total > 0 && len(l.conns) >= l.limits.Total:
		limit, evicted = TotalLimit, l.longestSilent(func(*Conn) bool { return true })
	}
	if limit != "" && evicted == nil {
		return limit, nil
	}
	if evicted != nil {
		l.remove(evicted)
	}
	l.conns[c] = struct{}{}
	if c.peer.IsValid() {
		l.peers[c.peer]++
	}
	return limit, evicted
}

// longestSilent returns the eligible connection on which nothing has arrived for longest, or nil.
// The caller holds mu.
func (l *Listener) longestSilent(eligible func(*Conn) bool) *Conn {
	if !l.limits.EvictSilent {
		return nil
	}
	var found *Conn
	var since time.Time
	for c := range l.conns {
		if at := c.lastHeard(); eligible(c) && (found == nil || at.Before(since)) {
			found, since = c, at
		}
	}
	return found
}

// remove reverses admit; it may be called twice. The caller holds mu.
func (l *Listener) remove(c *Conn) {
	if _, open := l.conns[c]; !open {
		return
	}
	delete(l.conns, c)
	if !c.peer.IsValid() {
		return
	}
	if l.peers[c.peer]--; l.peers[c.peer] == 0 {
		delete(l.peers, c.peer)
	}
}

// Open returns the number of open connections.
func (l *Listener) Open() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

// CloseSilent closes the connections on which no request can have begun: the client has not ended
// its TLS handshake or its HTTP/2 preface.
func (l *Listener) CloseSilent() {
	l.closeIf(func(c *Conn) bool { return c.requests.speaks.Load() == unknownProtocol })
}

// CloseAll closes every connection.
func (l *Listener) CloseAll() { l.closeIf(func(*Conn) bool { return true }) }

func (l *Listener) closeIf(choose func(*Conn) bool) {
	l.mu.Lock()
	var chosen []*Conn
	for c := range l.conns {
		if choose(c) {
			chosen = append(chosen, c)
		}
	}
	l.mu.Unlock()
	for _, c := range chosen {
		_ = c.Close() // the server that uses the connection sees an error
	}
}

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

// Descriptors returns how many files and connections the process may have open. The Go runtime
// raises the soft limit to the hard limit.
func Descriptors() int {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return math.MaxInt32
	}
	return int(min(limit.Cur, math.MaxInt32))
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
