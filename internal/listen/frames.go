package listen

import "encoding/binary"

// preface begins what a client sends on an HTTP/2 connection (RFC 9113, section 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// The types and flags of HTTP/2 frames that begin and end streams (RFC 9113, section 6).
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	frameRSTStream    = 0x3
	frameContinuation = 0x9

	flagEndStream = 0x1
	flagPadded    = 0x8
	flagPriority  = 0x20
)

// frame is the header of an HTTP/2 frame.
type frame struct {
	length int
	kind   byte
	flags  byte
	stream uint32
}

// frames parses the frames in one direction of an HTTP/2 connection.
type frames struct {
	header [9]byte
	have   int   // bytes of header
	now    frame // the frame that header began last
	skip   int   // bytes left of its payload
}

// each calls f for each frame whose header ends in p, the next bytes of the connection, and payload
// for each piece of a payload.
func (s *frames) each(p []byte, f func(frame), payload func(frame, []byte)) {
	for len(p) > 0 {
		if s.skip > 0 {
			n := min(s.skip, len(p))
			payload(s.now, p[:n])
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
		s.now = frame{
			length: s.skip, kind: s.header[3], flags: s.header[4],
			stream: binary.BigEndian.Uint32(s.header[5:]) & (1<<31 - 1),
		}
		f(s.now)
	}
}

// fieldBytes is how much memory a header field takes besides its text: up to 115 bytes in grpc-go
// and 100 in net/http, measured. A field that the client has sent before is one byte in HTTP/2.
const fieldBytes = 128

// fields counts the fields of a header block (RFC 7541, section 6) without decoding them.
type fields struct {
	state   fieldState
	padded  bool // the block has padding, so every byte counts as a field
	strings int  // strings that are left of the field
	length  int  // the length of a string
	shift   uint // of the next byte of length
	skip    int  // bytes that are left of a string, or before the block
}

// fieldState is what the next byte of a block is.
type fieldState byte

const (
	atField  fieldState = iota // the first byte of a field
	inIndex                    // a further byte of its index
	atLength                   // the first byte of a string
	inLength                   // a further byte of its length
)

// begin prepares for the block of a HEADERS frame.
func (f *fields) begin(flags byte) {
	*f = fields{padded: flags&flagPadded != 0}
	if flags&flagPriority != 0 {
		f.skip = 5
	}
}

// count returns how many fields begin in p, the next bytes of the block.
func (f *fields) count(p []byte) int {
	if f.padded {
		return len(p)
	}
	n := 0
	for len(p) > 0 {
		if f.skip > 0 {
			skipped := min(f.skip, len(p))
			f.skip -= skipped
			p = p[skipped:]
			continue
		}
		if f.state == atField {
			n++
		}
		f.next(p[0])
		p = p[1:]
	}
	return n
}

func (f *fields) next(b byte) {
	more := b >= 0x80 // in the further bytes of an integer
	switch f.state {
	case atField:
		index := byte(0x7f) // the bits of the index
		switch f.strings = 0; {
		case b&0x80 != 0: // an indexed field
		case b&0x40 != 0: // a literal that is added to the table
			index, f.strings = 0x3f, 1
		case b&0x20 != 0: // no field but a new size of the table
			index = 0x1f
		default: // a literal
			index, f.strings = 0x0f, 1
		}
		if f.strings == 1 && b&index == 0 { // with its name
			f.strings = 2
		}
		if more = b&index == index; more {
			f.state = inIndex
		}
	case atLength:
		f.strings--
		f.length, f.shift = int(b&0x7f), 0
		if more = f.length == 0x7f; more {
			f.state = inLength
		}
	case inLength:
		f.length += int(b&0x7f) << f.shift
		f.shift += 7
	}
	switch {
	case more:
		return
	case f.state == atLength || f.state == inLength:
		f.skip = f.length
	}
	if f.state = atField; f.strings > 0 {
		f.state = atLength
	}
}
