package listen

import (
	"net"
	"sync"
	"sync/atomic"
)

// Listener knows its connections, so that a drain need not wait for those that have nothing to say. Port probes and
// load balancers open connections and send nothing; grpc-go and net/http each wait some seconds for a first byte. On makes one.
type Listener struct {
	net.Listener
	mu    sync.Mutex
	conns map[*conn]struct{} // guarded by mu: those that are open
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	accepted, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: accepted, listener: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[c] = struct{}{}
	return c, nil
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

// conn remembers whether anything has arrived.
type conn struct {
	net.Conn
	listener *Listener
	heard    atomic.Bool
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && !c.heard.Load() { // a plain load, since this is on the path of every read
		c.heard.Store(true)
	}
	return n, err
}

func (c *conn) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.conns, c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}
