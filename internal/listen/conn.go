package listen

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Conn is a connection that a Listener has accepted. It does its own TLS, so that net/http and
// grpc-go both read and write through it and it sees the frames of HTTP/2.
type Conn struct {
	net.Conn // the TLS connection if there is TLS, else the socket

	socket   *socket
	listener *Listener
	peer     netip.Prefix
	opened   time.Time

	handshakeOnce sync.Once
	handshakeErr  error
	state         *tls.ConnectionState
	first         []byte // read by the handshake, and not yet by Read

	requests openRequests
}

// socket records when data last arrived from the peer.
type socket struct {
	net.Conn
	last atomic.Int64 // Unix nanoseconds; 0 before any data
}

// Read implements net.Conn.
func (s *socket) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if n > 0 {
		s.last.Store(time.Now().UnixNano())
	}
	return n, err
}

func newConn(l *Listener, accepted net.Conn) *Conn {
	s := &socket{Conn: accepted}
	c := &Conn{Conn: s, socket: s, listener: l, peer: peerOf(accepted.RemoteAddr(), l.limits.Local), opened: time.Now()}
	if l.tls != nil {
		c.Conn = tls.Server(s, l.tls)
	}
	c.requests.conn, c.requests.all = c, l.limits.Requests
	return c
}

// heard reports whether any data has arrived.
func (c *Conn) heard() bool { return c.socket.last.Load() != 0 }

// lastHeard returns when data last arrived, or else when the connection was opened.
func (c *Conn) lastHeard() time.Time {
	if at := c.socket.last.Load(); at != 0 {
		return time.Unix(0, at)
	}
	return c.opened
}

// Opened returns when the connection was accepted.
func (c *Conn) Opened() time.Time { return c.opened }

// Handshake does the TLS handshake, and refuses HTTP/1 if the listener requires HTTP/2. It does
// both once; Read and Write call it, as in *tls.Conn.
func (c *Conn) Handshake() error {
	c.handshakeOnce.Do(func() { c.handshakeErr = c.handshake() })
	return c.handshakeErr
}

func (c *Conn) handshake() error {
	if secured, ok := c.Conn.(*tls.Conn); ok {
		if err := secured.HandshakeContext(context.Background()); err != nil {
			if gone := errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET); !gone || c.heard() {
				c.listener.handshakeFailed(c.peerAddr(), err)
			}
			if noTLS, ok := errors.AsType[tls.RecordHeaderError](err); ok && noTLS.Conn != nil {
				answerHTTP1(noTLS.Conn, cmp.Or(c.listener.noHTTP1, "Client sent an HTTP request to an HTTPS server.\n"))
			}
			return err
		}
		state := secured.ConnectionState()
		c.state = &state
	}
	if c.listener.noHTTP1 == "" || c.agreedHTTP2() {
		return nil
	}
	first := make([]byte, len(preface))
	n, err := c.Conn.Read(first)
	if c.first = first[:n]; c.state == nil && strings.HasPrefix(preface, string(c.first)) {
		return nil // an error is returned by the next Read too
	}
	if _, target, ok := strings.Cut(string(c.first), " "); ok && err == nil && strings.HasPrefix(target, "/") {
		answerHTTP1(c.Conn, c.listener.noHTTP1)
	}
	return errHTTP1
}

// errHTTP1 means that the client speaks HTTP/1 to a listener that requires HTTP/2, or has not
// negotiated HTTP/2 by ALPN.
var errHTTP1 = errors.New("the client does not speak HTTP/2")

// answerHTTP1 refuses the request of an HTTP/1 client. It waits until the client has closed the
// connection, because TCP discards an answer if more data arrives after the server has closed it.
func answerHTTP1(conn net.Conn, text string) {
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	_, _ = io.WriteString(conn, "HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"+text)
	_ = closeWrite(conn)
	_, _ = io.Copy(io.Discard, io.LimitReader(conn, 64<<10))
}

// TLS returns the state of the TLS connection, or nil without TLS. Call it after the handshake.
func (c *Conn) TLS() *tls.ConnectionState { return c.state }

// agreedHTTP2 reports whether the handshake negotiated HTTP/2.
func (c *Conn) agreedHTTP2() bool { return c.state != nil && c.state.NegotiatedProtocol == "h2" }

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if err := c.Handshake(); err != nil {
		return 0, err
	}
	if all := c.requests.all; all != nil {
		all.pause()
	}
	n, err := copy(p, c.first), error(nil)
	if c.first = c.first[n:]; n == 0 {
		n, err = c.Conn.Read(p)
	}
	if !c.requests.received(p[:n]) {
		return 0, io.EOF
	}
	return n, err
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	if err := c.Handshake(); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	c.requests.sent(p[:n])
	return n, err
}

// CloseWrite closes the sending direction. net/http calls it if present.
func (c *Conn) CloseWrite() error { return closeWrite(c.Conn) }

func closeWrite(conn net.Conn) error {
	if s, ok := conn.(*socket); ok {
		conn = s.Conn
	}
	if closer, ok := conn.(interface{ CloseWrite() error }); ok {
		return closer.CloseWrite()
	}
	return nil
}

// Close implements net.Conn. It frees the connection's place last, so that there are never more
// descriptors than places.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	c.requests.release()
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	c.listener.remove(c)
	return err
}

// abort resets the connection, and reports whether it was open. The server that uses it sees an
// error and closes it.
func (c *Conn) abort() (first bool) {
	first = c.requests.release()
	refuse(c.socket.Conn)
	return first
}

func (c *Conn) peerAddr() net.Addr { return c.socket.RemoteAddr() }

// addr is a peer's address with its connection.
type addr struct {
	net.Addr
	conn *Conn
}

// RemoteAddr implements net.Conn. FromAddr returns the connection of it: grpc-go passes only the
// address on to calls.
func (c *Conn) RemoteAddr() net.Addr { return addr{c.peerAddr(), c} }

// FromAddr returns the connection whose RemoteAddr is a, or nil for any other address.
func FromAddr(a net.Addr) *Conn {
	known, _ := a.(addr)
	return known.conn
}

type connKey struct{}

// NewContext returns ctx with a connection. Use it as http.Server's ConnContext.
func NewContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// FromContext returns the connection that NewContext added, or nil.
func FromContext(ctx context.Context) *Conn {
	c, _ := ctx.Value(connKey{}).(*Conn)
	return c
}
