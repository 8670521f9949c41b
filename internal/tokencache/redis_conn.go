package tokencache

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strconv"
	"syscall"
	"time"
)

// dialer returns how to connect, by TLS if there is a configuration of that.
func (c *RedisConfig) dialer(secure *tls.Config) func(ctx context.Context, network, addr string) (net.Conn, error) {
	plain := net.Dialer{Timeout: redisTimeout, KeepAlive: 5 * time.Second}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := plain.DialContext(ctx, network, addr)
		if err != nil {
			return nil, redisError(err.Error())
		}
		if secure == nil {
			return bounded(conn), nil
		}
		own := tls.Client(conn, c.secure(secure, addr))
		if err := handshake(ctx, own); err != nil {
			_ = conn.Close()
			if speaksPlaintext(ctx, &plain, network, addr, err) {
				return nil, errNoTLS
			}
			return nil, redisError(err.Error())
		}
		return bounded(own), nil
	}
}

// probeTime is set aside of redisTimeout to find out why a handshake failed.
const probeTime = redisTimeout / 4

// handshake leaves the time for a probe.
func handshake(ctx context.Context, conn *tls.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout-2*probeTime)
	defer cancel()
	return conn.HandshakeContext(ctx)
}

// speaksPlaintext reports whether a handshake failed because the server has no TLS. Such a Redis takes the first message for a
// command: it answers in plaintext, or goes on waiting for the end of the line. Then it is asked in its own words.
func speaksPlaintext(ctx context.Context, dialer *net.Dialer, network, addr string, failed error) bool {
	if _, ok := errors.AsType[tls.RecordHeaderError](failed); ok {
		return true
	}
	if !errors.Is(failed, context.DeadlineExceeded) {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	conn, err := dialer.DialContext(ctx, network, addr)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(probeTime))
	answer := make([]byte, 1)
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		return false
	}
	n, _ := conn.Read(answer)
	return n == 1 && (answer[0] == '+' || answer[0] == '-') // it may want a password first
}

// speaksTLS reports whether a server that would not be spoken to in plaintext has TLS. It says no more to it than a handshake
// does, and believes nobody's certificate.
func speaksTLS(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	conn, err := (&tls.Dialer{Config: &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "redis.invalid", MinVersion: tls.VersionTLS12}}).DialContext(ctx, "tcp", addr)
	if err == nil {
		_ = conn.Close()
		return true
	}
	_, shown := errors.AsType[*tls.CertificateVerificationError](err)
	return shown
}

// secure is how to make sure of a node or a sentinel; cfg has the host of the URL as its name.
func (c *RedisConfig) secure(cfg *tls.Config, addr string) *tls.Config {
	cfg = cfg.Clone()
	if host, _, err := net.SplitHostPort(addr); err == nil && net.ParseIP(host) == nil {
		cfg.ServerName = host
	}
	if c.RootCAs != nil {
		cfg.RootCAs = c.RootCAs() // as they are now
	}
	return cfg
}

// boundedConn is a connection that breaks when what a server answers would take too much memory. The client library makes
// room for whatever length it is told, and goes as deep as arrays are nested.
type boundedConn struct {
	net.Conn

	room int    // that answers to the last command may still take, in bytes
	text int    // bytes to come of a string
	line []byte // what there is of a line, as far as it matters
}

const (
	maxAnswer   = 4 << 20 // more than a thousand nodes of a cluster need to be told
	arraySize   = 512     // of the stack, in another array
	elementSize = 16
	maxLine     = 32 // of which a length is a part
)

// bounded keeps the socket of a plain connection within reach: the client library looks there whether it is still alive.
func bounded(conn net.Conn) net.Conn {
	c := &boundedConn{Conn: conn}
	if socket, ok := conn.(syscall.Conn); ok {
		return struct {
			*boundedConn
			syscall.Conn
		}{c, socket}
	}
	return c
}

func (c *boundedConn) Write(b []byte) (int, error) {
	c.room = maxAnswer
	return c.Conn.Write(b)
}

func (c *boundedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.room -= n
	for rest := b[:n]; len(rest) > 0 && c.room >= 0; {
		skipped := min(c.text, len(rest))
		c.text -= skipped
		line, after, ends := bytes.Cut(rest[skipped:], []byte("\n"))
		c.line = append(c.line, line[:min(len(line), maxLine-len(c.line))]...)
		if ends {
			c.announced()
			c.line = c.line[:0]
		}
		rest = after
	}
	if c.room < 0 {
		return 0, errMalformed
	}
	return n, err
}

// announced notes what is to follow the line: a string, elements of an array, or nothing.
func (c *boundedConn) announced() {
	if len(c.line) == 0 || !bytes.ContainsRune([]byte("$=!*%~>|"), rune(c.line[0])) {
		return
	}
	length, err := strconv.Atoi(string(bytes.TrimSuffix(c.line[1:], []byte("\r"))))
	switch {
	case err != nil || len(c.line) == maxLine || length > c.room/elementSize:
		c.room = -1
	case length < 0:
	case bytes.ContainsRune([]byte("$=!"), rune(c.line[0])):
		c.text = length + len("\r\n")
	default:
		c.room -= arraySize + length*elementSize
	}
}
