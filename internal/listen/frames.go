package listen

import "encoding/binary"

// preface begins what a client sends on an HTTP/2 connection (RFC 9113, section 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// The types and flags of HTTP/2 frames that begin and end streams (RFC 9113, section 6).
const (
	frameData      = 0x0
	frameHeaders   = 0x1
	frameRSTStream = 0x3

	flagEndStream = 0x1
)

// frame is the header of an HTTP/2 frame.
type frame struct {
	length int
	kind   byte
	flags  byte
	stream uint32
}

// frames parses the frame headers in one direction of an HTTP/2 connection.
type frames struct {
	header [9]byte
	have   int // bytes of header
	skip   int // bytes left of the frame's payload
}

// each calls f for each frame whose header ends in p, the next bytes of the connection.
func (s *frames) each(p []byte, f func(frame)) {
	for len(p) > 0 {
		if s.skip > 0 {
			n := min(s.skip, len(p))
			s.skip -= n
			p = p[n:]
			continue
		}
		n := copy(s.header[s.have:], p)
		s.have += n
		p = p[n:]
		if s.have < len(s.header) {
			return
		}
		s.have = 0
		s.skip = int(binary.BigEndian.Uint32(s.header[:4]) >> 8)
		f(frame{
			length: s.skip, kind: s.header[3], flags: s.header[4],
			stream: binary.BigEndian.Uint32(s.header[5:]) & (1<<31 - 1),
		})
	}
}
