package tokencache

import (
	"bytes"
	"errors"
	"net"
	"regexp"
	"strconv"
	"sync"
)

// guardedConn is a connection to Redis that breaks, as one does, when the server sends what nobody asked for or what is
// absurdly long. The client library reads in a goroutine of its own and panics there, or allocates whatever it is told to,
// which would end the process.
//
// What a sentinel publishes is passed on as it is: a sentinel is believed to be one.
type guardedConn struct {
	net.Conn
	publishes bool // it may be a sentinel's

	received respReader // of the one that reads
	broken   error      // of the one that reads

	mu   sync.Mutex
	sent respReader // guarded by mu
	due  int        // guarded by mu; answers to what was sent
}

var (
	errUnasked   = errors.New("it answers what it was not asked")
	errMalformed = errors.New("its answer is malformed or too long")
)

// subscribing is a command that is answered by what is published only.
var subscribing = regexp.MustCompile(`^\*\d+\r\n\$\d+\r\n[PS]?(UN)?SUBSCRIBE\r\n`)

func (c *guardedConn) Write(b []byte) (int, error) {
	if err := c.expect(b); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// expect notes how many answers there will be. It comes before the write, or the answer could come first.
func (c *guardedConn) expect(b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(b) > 0 {
		n, whole, err := c.sent.read(b)
		if err != nil {
			return err
		}
		if whole && !subscribing.Match(c.sent.head) {
			c.due++
		}
		b = b[n:]
	}
	return nil
}

// Read passes on whole messages and beginnings, but nothing of one that is wrong as far as that is known.
func (c *guardedConn) Read(b []byte) (int, error) {
	if c.broken != nil {
		return 0, c.broken
	}
	n, err := c.Conn.Read(b)
	for good := 0; good < n; {
		read, whole, wrong := c.received.read(b[good:n])
		if wrong == nil && whole {
			wrong = c.answered(c.received.head[0])
		}
		if wrong != nil {
			c.broken = wrong
			if good == 0 {
				return 0, wrong
			}
			return good, nil
		}
		good += read
	}
	return n, err
}

func (c *guardedConn) answered(kind byte) error {
	if kind == '>' && c.publishes {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.due--; kind == '>' || c.due < 0 {
		return errUnasked
	}
	return nil
}

// Far more than a sealed token, or what a large cluster says of itself.
const (
	maxMessage  = 4 << 20 // bytes
	maxElements = 1 << 16
	maxDepth    = 8
	maxHead     = 64
)

// respReader finds the ends of messages in a stream of Redis's protocol (RESP 2 or 3), piece by piece.
type respReader struct {
	head  []byte // how the message begins
	line  []byte // what there is of a line that has not ended, as far as it matters
	size  int    // of the message so far
	skip  int    // bytes of a string that are still to come
	open  []int  // elements that are still to come, of each array around
	whole bool   // the last message has ended
}

// read reads on until a message ends or b does, and returns how much that is.
func (r *respReader) read(b []byte) (n int, whole bool, err error) {
	if r.whole {
		*r = respReader{head: r.head[:0], line: r.line[:0], open: r.open[:0]}
	}
	for n < len(b) && !r.whole {
		var read int
		if r.skip > 0 {
			read = min(r.skip, len(b)-n)
			if r.skip -= read; r.skip == 0 {
				r.element()
			}
			r.note(b[n : n+read])
		} else if read, err = r.readLine(b[n:]); err != nil {
			return n, false, err
		}
		n += read
	}
	if r.size > maxMessage {
		return n, false, errMalformed
	}
	return n, r.whole, nil
}

func (r *respReader) note(b []byte) {
	r.size += len(b)
	r.head = append(r.head, b[:min(len(b), maxHead-len(r.head))]...)
}

func (r *respReader) readLine(b []byte) (int, error) {
	n := bytes.IndexByte(b, '\n') + 1
	ends := n > 0
	if !ends {
		n = len(b)
	}
	r.note(b[:n])
	r.line = append(r.line, b[:min(n, maxHead-len(r.line))]...)
	if !ends {
		return n, nil
	}
	err := r.begin(bytes.TrimRight(r.line, "\r\n"))
	r.line = r.line[:0]
	return n, err
}

// begin takes the first line of an element.
func (r *respReader) begin(line []byte) error {
	if len(line) == 0 {
		return errMalformed
	}
	var size int
	switch line[0] {
	case '+', '-', ':', '_', ',', '#', '(':
		r.element()
		return nil
	case '$', '=', '!', '*', '~', '>', '%':
		var err error
		if size, err = strconv.Atoi(string(line[1:])); err != nil || size < -1 {
			return errMalformed
		}
	default:
		return errMalformed
	}
	isString := line[0] == '$' || line[0] == '=' || line[0] == '!'
	if line[0] == '%' {
		size *= 2
	}
	switch {
	case isString && size >= 0 && size <= maxMessage:
		r.skip = size + len("\r\n")
	case !isString && size > 0 && size <= maxElements && len(r.open) < maxDepth:
		r.open = append(r.open, size)
	case size <= 0:
		r.element()
	default:
		return errMalformed
	}
	return nil
}

// element notes the end of one.
func (r *respReader) element() {
	for len(r.open) > 0 {
		last := len(r.open) - 1
		if r.open[last]--; r.open[last] > 0 {
			return
		}
		r.open = r.open[:last]
	}
	r.whole = true
}
