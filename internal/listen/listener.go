package listen

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// Listener knows its connections, so that their number can be bounded, and a drain need not wait for those that have nothing to
// say. Port probes and load balancers open connections and send nothing; grpc-go and net/http each wait some seconds for a
// first byte. On and Track make one.
type Listener struct {
	net.Listener
	limits Limits
	mu     sync.Mutex
	conns  map[*conn]struct{}   // guarded by mu: those that are open
	peers  map[netip.Prefix]int // guarded by mu: how many of them are whose
}

// Accept implements net.Listener. It returns connections within the limits only.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		accepted, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &conn{Conn: accepted, listener: l, peer: peerOf(accepted.RemoteAddr())}
		limit := l.admit(c)
		if limit == "" {
			return c, nil
		}
		refuse(accepted)
		if l.limits.Refused != nil {
			l.limits.Refused(limit, accepted.RemoteAddr())
		}
	}
}

// admit counts c among the open connections, unless that would be beyond the limit that it returns.
func (l *Listener) admit(c *conn) (limit string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.limits.Total > 0 && len(l.conns) >= l.limits.Total:
		return TotalLimit
	case l.limits.PerPeer > 0 && c.peer.IsValid() && l.peers[c.peer] >= l.limits.PerPeer:
		return PerPeerLimit
	}
	l.conns[c] = struct{}{}
	if c.peer.IsValid() {
		l.peers[c.peer]++
	}
	return ""
}

// forget is the end of what admit began; it may come twice.
func (l *Listener) forget(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
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

// Open is how many connections are open.
func (l *Listener) Open() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

// CloseSilent closes the connections on which nothing has arrived.
func (l *Listener) CloseSilent() { l.closeIf(func(c *conn) bool { return !c.heard.Load() }) }

// CloseAll closes every connection.
func (l *Listener) CloseAll() { l.closeIf(func(*conn) bool { return true }) }

func (l *Listener) closeIf(choose func(*conn) bool) {
	l.mu.Lock()
	var chosen []*conn
	for c := range l.conns {
		if choose(c) {
			chosen = append(chosen, c)
		}
	}
	l.mu.Unlock()
	for _, c := range chosen {
		_ = c.Close() // its owner gets the error as well, and knows what to do
	}
}

// conn remembers whose it is, and whether anything has arrived.
type conn struct {
	net.Conn
	listener *Listener
	peer     netip.Prefix
	heard    atomic.Bool
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && !c.heard.Load() { // a plain load, since this is on the path of every read
		c.heard.Store(true)
	}
	return n, err
}

// Close frees the place last, so that there are never more descriptors than places.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.listener.forget(c)
	return err
}
