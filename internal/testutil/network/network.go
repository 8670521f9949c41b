// Package network is an in-memory network with TCP's behaviour and faults, for tests in virtual
// time.
package network

import (
	"context"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Network connects the listeners and clients of a bubble.
type Network struct {
	mu        sync.Mutex
	listeners map[string]*memoryListener // guarded by mu
	ports     int                        // guarded by mu; of clients
	open      map[*Conn]struct{}         // guarded by mu; ends that are not closed
	made      int                        // guarded by mu; connections
}

// New returns a network without listeners.
func New() *Network {
	return &Network{listeners: map[string]*memoryListener{}, open: map[*Conn]struct{}{}}
}

// Counts returns the open ends of connections, and the number of connections ever made.
func (n *Network) Counts() (open, made int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.open), n.made
}

// memoryListener is a net.Listener of a network.
type memoryListener struct {
	network  *Network
	addr     *net.TCPAddr
	incoming chan *Conn
	closed   chan struct{}
	once     sync.Once
}

// Listen listens on a numeric host:port.
func (n *Network) Listen(addr string) (net.Listener, error) {
	at, err := net.ResolveTCPAddr("tcp", addr) // no look-up, since it is numeric
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[addr] != nil {
		return nil, syscall.EADDRINUSE
	}
	l := &memoryListener{network: n, addr: at, incoming: make(chan *Conn, 1024), closed: make(chan struct{})}
	n.listeners[addr] = l
	return l, nil
}

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.incoming:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memoryListener) Addr() net.Addr { return l.addr }

// Close resets the connections that are not accepted.
func (l *memoryListener) Close() error {
	l.once.Do(func() {
		l.network.mu.Lock()
		delete(l.network.listeners, l.addr.String())
		close(l.closed)
		l.network.mu.Unlock()
		for {
			select {
			case c := <-l.incoming:
				c.Reset()
				_ = c.Close()
				continue
			default:
			}
			return
		}
	})
	return nil
}

// connect makes a connection over a link.
func (n *Network) connect(over *Link, addr string) (*Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.listeners[addr]
	if l == nil || len(l.incoming) == cap(l.incoming) {
		return nil, os.NewSyscallError("connect", syscall.ECONNREFUSED)
	}
	n.made++
	n.ports++
	from := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 10_000 + n.ports%50_000}
	there, back := newStreams(over)
	client := &Conn{in: back, out: there, local: from, remote: l.addr}
	server := &Conn{in: there, out: back, local: l.addr, remote: from}
	for _, c := range []*Conn{client, server} {
		n.open[c] = struct{}{}
		c.closed = func() { n.forget(over, client, c) }
	}
	over.add(client)
	l.incoming <- server
	return client, nil
}

func (n *Network) forget(over *Link, client, closed *Conn) {
	n.mu.Lock()
	delete(n.open, closed)
	n.mu.Unlock()
	if closed == client {
		over.remove(client)
	}
}

// Conditions are the conditions of a link.
type Conditions struct {
	Latency time.Duration // each way, plus up to half of it
	Pieces  int           // size of the largest segment; 0: unlimited
	Refused bool          // connections are refused
	Silence bool          // what is sent is lost, and its connection with it
	Until   time.Time     // nothing arrives before
}

// Link carries the connections of its clients under its conditions.
type Link struct {
	network *Network

	mu       sync.Mutex
	random   *rand.Rand         // guarded by mu
	now      Conditions         // guarded by mu
	conns    []*Conn            // guarded by mu; clients' ends, oldest first
	troubled time.Time          // guarded by mu; the end of the last fault; endless during one
	vanished map[*Conn]struct{} // guarded by mu; those of conns that are dead
}

// Latency is the latency without a fault.
const Latency = time.Millisecond

// NewLink returns a link without faults.
func (n *Network) NewLink(random *rand.Rand) *Link {
	return &Link{network: n, random: random, now: Conditions{Latency: Latency}, vanished: map[*Conn]struct{}{}}
}

// DialPatience is the timeout of a connection attempt.
const DialPatience = 4 * time.Second

// Dial is a DialContext.
func (l *Link) Dial(ctx context.Context, _, addr string) (net.Conn, error) {
	failed := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, DialPatience)
	defer cancel()
	l.mu.Lock()
	now := l.now
	l.mu.Unlock()
	patience := now.Latency
	if wait := time.Until(now.Until); wait > patience {
		patience = wait
	}
	if now.Silence {
		patience = 2 * DialPatience
	}
	select {
	case <-time.After(patience):
	case <-ctx.Done():
		return failed(os.ErrDeadlineExceeded)
	}
	if now.Refused {
		return failed(os.NewSyscallError("connect", syscall.ECONNREFUSED))
	}
	c, err := l.network.connect(l, addr)
	if err != nil {
		return failed(err)
	}
	return c, nil
}

// Set changes the conditions unless there is a fault already. restore ends the fault.
func (l *Link) Set(now Conditions) (restore func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.troubled.Equal(endless) {
		return func() {}
	}
	if now.Latency == 0 {
		now.Latency = Latency
	}
	l.now, l.troubled = now, endless
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.now, l.troubled = Conditions{Latency: Latency}, time.Now().Add(lingering)
	}
}

// lingering is how long data sent during a fault may still be in flight after it, and clients may
// wait before they reconnect. endless is later than any time.
const lingering = 20 * time.Second

var endless = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

// TroubledSince reports whether there was a fault since then, or there still are dead connections.
func (l *Link) TroubledSince(then time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.troubled.After(then) || len(l.vanished) > 0
}

// disturbed records a fault that ends now. The caller holds mu.
func (l *Link) disturbed() {
	if until := time.Now().Add(lingering); l.troubled.Before(until) {
		l.troubled = until
	}
}

// Each calls do for a share of the open connections.
func (l *Link) Each(share float64, do func(*Conn)) (n int) {
	l.mu.Lock()
	var chosen []*Conn
	for _, c := range l.conns {
		if l.random.Float64() < share {
			chosen = append(chosen, c)
		}
	}
	l.disturbed()
	l.mu.Unlock()
	for _, c := range chosen {
		do(c)
	}
	return len(chosen)
}

// Lose is Each for a fault that makes a connection unusable until it is closed.
func (l *Link) Lose(share float64, do func(*Conn)) {
	l.Each(share, func(c *Conn) {
		l.markLost(c.in)
		do(c)
	})
}

// markLost records that the connection of a stream is dead.
func (l *Link) markLost(s *stream) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		if c.in == s || c.out == s {
			l.vanished[c] = struct{}{}
		}
	}
}

func (l *Link) add(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = append(l.conns, c)
}

func (l *Link) remove(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = slices.DeleteFunc(l.conns, func(other *Conn) bool { return other == c })
	if _, was := l.vanished[c]; was {
		delete(l.vanished, c)
		l.disturbed()
	}
}

// piece returns the part of p that goes into one segment.
func (l *Link) piece(p []byte) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.now.Pieces > 0 {
		return p[:min(len(p), 1+l.random.IntN(l.now.Pieces))]
	}
	return p[:min(len(p), StreamWindow)]
}

func (l *Link) silent() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now.Silence
}

// arrival returns when data sent now arrives.
func (l *Link) arrival() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := time.Now().Add(l.now.Latency + time.Duration(l.random.Int64N(int64(l.now.Latency/2)+1)))
	if at.Before(l.now.Until) {
		return l.now.Until
	}
	return at
}
