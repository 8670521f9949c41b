package server

import (
	"net"
	"sync"
	"sync/atomic"
)

// drainListener knows its connections, so that a drain need not wait for those that have nothing to say. Port probes and
// load balancers open connections and send nothing; grpc-go and net/http each wait some seconds for a first byte.
type drainListener struct {
	net.Listener
	mu    sync.Mutex
	conns map[*drainConn]struct{} // guarded by mu: those that are open
}

func newDrainListener(l net.Listener) *drainListener {
	return &drainListener{Listener: l, conns: make(map[*drainConn]struct{})}
}

// Accept implements net.Listener.
func (l *drainListener) Accept() (net.Conn, error) {
	accepted, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	conn := &drainConn{Conn: accepted, listener: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[conn] = struct{}{}
	return conn, nil
}

// closeSilent closes the connections on which nothing has arrived.
func (l *drainListener) closeSilent() { l.closeIf(func(c *drainConn) bool { return !c.heard.Load() }) }

// closeAll closes every connection.
func (l *drainListener) closeAll() { l.closeIf(func(*drainConn) bool { return true }) }

func (l *drainListener) closeIf(choose func(*drainConn) bool) {
	l.mu.Lock()
	var chosen []*drainConn
	for conn := range l.conns {
		if choose(conn) {
			chosen = append(chosen, conn)
		}
	}
	l.mu.Unlock()
	for _, conn := range chosen {
		_ = conn.Close() // its owner gets the error as well, and knows what to do
	}
}

// drainConn remembers whether anything has arrived.
type drainConn struct {
	net.Conn
	listener *drainListener
	heard    atomic.Bool
}

func (c *drainConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && !c.heard.Load() { // a plain load, since this is on the path of every read
		c.heard.Store(true)
	}
	return n, err
}

func (c *drainConn) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.conns, c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}
