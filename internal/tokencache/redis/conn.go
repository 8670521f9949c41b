package redis

import (
	"bytes"
	"net"
	"strconv"
	"syscall"
)

// boundedConn is a connection that fails when an answer would take too much memory. The client
// library allocates any length that it reads, and recurses as deep as arrays are nested.
type boundedConn struct {
	net.Conn

	room int    // bytes that the answers to the last command may still take
	text int    // bytes of a string that are still to come
	line []byte // the beginning of the current line
}

const (
	maxAnswer   = 4 << 20 // the state of a cluster with more than a thousand nodes
	arraySize   = 512     // of the stack, for an array in another one
	elementSize = 16
	maxLine     = 32 // enough for a length
)

// bounded returns a boundedConn. It exposes the socket of a plain connection, which the client
// library uses to check that it is alive.
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

// announced handles a complete line, which may announce a string or the elements of an array.
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
