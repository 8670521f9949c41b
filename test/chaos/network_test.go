package chaos

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

// network is where everybody in a bubble listens and dials.
type network struct {
	mu        sync.Mutex
	listeners map[string]*memoryListener // guarded by mu
	ports     int                        // guarded by mu; given to those who dial
	open      map[*conn]struct{}         // guarded by mu; ends that nobody has closed
	made      int                        // guarded by mu; connections
}

func newNetwork() *network {
	return &network{listeners: map[string]*memoryListener{}, open: map[*conn]struct{}{}}
}

// counts are how many ends of connections are open, and how many connections there have ever been.
func (n *network) counts() (open, made int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.open), n.made
}

// memoryListener is a net.Listener of a network.
type memoryListener struct {
	network  *network
	addr     *net.TCPAddr
	incoming chan *conn
	closed   chan struct{}
	once     sync.Once
}

func (n *network) listen(addr string) (net.Listener, error) {
	at, err := net.ResolveTCPAddr("tcp", addr) // an address of digits: nobody is asked
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[addr] != nil {
		return nil, syscall.EADDRINUSE
	}
	l := &memoryListener{network: n, addr: at, incoming: make(chan *conn, 1024), closed: make(chan struct{})}
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

// Close resets what nobody has accepted.
func (l *memoryListener) Close() error {
	l.once.Do(func() {
		l.network.mu.Lock()
		delete(l.network.listeners, l.addr.String())
		close(l.closed)
		l.network.mu.Unlock()
		for {
			select {
			case c := <-l.incoming:
				c.reset()
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
func (n *network) connect(over *link, addr string) (*conn, error) {
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
	client := &conn{in: back, out: there, local: from, remote: l.addr}
	server := &conn{in: there, out: back, local: l.addr, remote: from}
	for _, c := range []*conn{client, server} {
		n.open[c] = struct{}{}
		c.closed = func() { n.forget(over, client, c) }
	}
	over.add(client)
	l.incoming <- server
	return client, nil
}

func (n *network) forget(over *link, client, closed *conn) {
	n.mu.Lock()
	delete(n.open, closed)
	n.mu.Unlock()
	if closed == client {
		over.remove(client)
	}
}

// conditions are what happens to what is sent over a link.
type conditions struct {
	latency time.Duration // each way, and up to half of it more
	pieces  int           // the largest; 0: whole
	refused bool          // nobody can connect
	silence bool          // whatever is sent is lost, and with it its connection
	until   time.Time     // nothing arrives before
}

// link is the way from those who dial to those who listen, with its conditions.
type link struct {
	network *network

	mu       sync.Mutex
	random   *rand.Rand         // guarded by mu
	now      conditions         // guarded by mu
	conns    []*conn            // guarded by mu; the ends of those who dialled, in the order of their making
	troubled time.Time          // guarded by mu; until then; far ahead during a fault
	vanished map[*conn]struct{} // guarded by mu; those of conns that go nowhere
}

// usual is the latency without a fault.
const usual = time.Millisecond

func (n *network) newLink(random *rand.Rand) *link {
	return &link{network: n, random: random, now: conditions{latency: usual}, vanished: map[*conn]struct{}{}}
}

// dialPatience is how long somebody tries to connect to who does not answer.
const dialPatience = 4 * time.Second

// dial is for a DialContext.
func (l *link) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	failed := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	l.mu.Lock()
	now := l.now
	l.mu.Unlock()
	patience := now.latency
	if wait := time.Until(now.until); wait > patience {
		patience = wait
	}
	if now.silence {
		patience = 2 * dialPatience
	}
	select {
	case <-time.After(patience):
	case <-ctx.Done():
		return failed(os.ErrDeadlineExceeded)
	}
	if now.refused {
		return failed(os.NewSyscallError("connect", syscall.ECONNREFUSED))
	}
	c, err := l.network.connect(l, addr)
	if err != nil {
		return failed(err)
	}
	return c, nil
}

// set changes the conditions, unless they are not the usual ones as it is. The function that it returns brings those back.
func (l *link) set(now conditions) (mend func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.troubled.Equal(endless) {
		return func() {}
	}
	if now.latency == 0 {
		now.latency = usual
	}
	l.now, l.troubled = now, endless
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.now, l.troubled = conditions{latency: usual}, time.Now().Add(lingering)
	}
}

// lingering is how long what was sent during a fault may be on its way after it, and callers may wait before they connect anew. endless is later than that.
const lingering = 20 * time.Second

var endless = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

// troubledSince reports whether there was a fault at any time since then, or there still are connections that go nowhere.
func (l *link) troubledSince(then time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.troubled.After(then) || len(l.vanished) > 0
}

// disturbed notes that something was wrong until now. The caller holds mu.
func (l *link) disturbed() {
	if until := time.Now().Add(lingering); l.troubled.Before(until) {
		l.troubled = until
	}
}

// each does something to some of the connections that are open.
func (l *link) each(share float64, do func(*conn)) (n int) {
	l.mu.Lock()
	var chosen []*conn
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

// lose is each for what ends the use of a connection, now or later: it is trouble until it is closed.
func (l *link) lose(share float64, do func(*conn)) {
	l.each(share, func(c *conn) {
		l.markLost(c.in)
		do(c)
	})
}

// markLost notes that a connection, by one of its directions, goes nowhere.
func (l *link) markLost(s *stream) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		if c.in == s || c.out == s {
			l.vanished[c] = struct{}{}
		}
	}
}

func (l *link) add(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = append(l.conns, c)
}

func (l *link) remove(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = slices.DeleteFunc(l.conns, func(other *conn) bool { return other == c })
	if _, was := l.vanished[c]; was {
		delete(l.vanished, c)
		l.disturbed()
	}
}

// piece is how much of p goes into one segment.
func (l *link) piece(p []byte) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.now.pieces > 0 {
		return p[:min(len(p), 1+l.random.IntN(l.now.pieces))]
	}
	return p[:min(len(p), streamWindow)]
}

func (l *link) silent() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now.silence
}

// arrival is when what is sent now arrives.
func (l *link) arrival() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := time.Now().Add(l.now.latency + time.Duration(l.random.Int64N(int64(l.now.latency/2)+1)))
	if at.Before(l.now.until) {
		return l.now.until
	}
	return at
}
