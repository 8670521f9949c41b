package listen

import (
	"crypto/tls"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Listener accepts connections within its limits, and knows which are open. On and Track make one.
type Listener struct {
	net.Listener
	limits Limits

	tls             *tls.Config
	handshakeFailed func(peer net.Addr, err error)

	mu    sync.Mutex
	conns map[*Conn]struct{}   // guarded by mu: those that are open
	peers map[netip.Prefix]int // guarded by mu: how many connections each peer has
}

// Secure makes the listener serve TLS on the connections that it accepts from then on. It calls failed, which must not
// block, for each handshake that fails, unless the client closed the connection before it sent anything, as a TCP probe
// does.
func (l *Listener) Secure(config *tls.Config, failed func(peer net.Addr, err error)) {
	l.tls, l.handshakeFailed = config, failed
}

// Accept implements net.Listener. It returns connections within the limits only, each a *Conn.
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

// admit counts c among the open connections. If that exceeds a limit, it returns the limit, and the connection to close
// in place of c, if there is one.
func (l *Listener) admit(c *Conn) (limit string, evicted *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.limits.PerPeer > 0 && c.peer.IsValid() && l.peers[c.peer] >= l.limits.PerPeer:
		limit, evicted = PerPeerLimit, l.longestIdle(func(other *Conn) bool { return other.peer == c.peer })
	case l.limits.Total > 0 && len(l.conns) >= l.limits.Total:
		limit, evicted = TotalLimit, l.longestIdle(func(*Conn) bool { return true })
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

// longestIdle returns the eligible connection on which nothing has arrived for longest, nil if the listener evicts none.
// The caller holds mu.
func (l *Listener) longestIdle(eligible func(*Conn) bool) *Conn {
	if !l.limits.EvictIdle {
		return nil
	}
	var found *Conn
	var since time.Time
	for c := range l.conns {
		if at := c.lastHeard(); !c.busy.Load() && eligible(c) && (found == nil || at.Before(since)) {
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

// CloseSilent closes the connections on which nothing has arrived.
func (l *Listener) CloseSilent() { l.closeIf(func(c *Conn) bool { return !c.heard() }) }

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
		_ = c.Close() // the server that has the connection sees an error
	}
}
