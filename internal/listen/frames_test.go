package listen

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestFields checks the number of fields in header blocks of every representation.
func TestFields(t *testing.T) {
	var blocks [][]byte
	var wants []int
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	add := func(want int, fields ...hpack.HeaderField) {
		block.Reset()
		for _, f := range fields {
			_ = encoder.WriteField(f)
		}
		blocks, wants = append(blocks, bytes.Clone(block.Bytes())), append(wants, want)
	}
	many := make([]hpack.HeaderField, 0, 200)
	for i := range cap(many) {
		many = append(many, hpack.HeaderField{Name: fmt.Sprint("x-", i%70), Value: strings.Repeat("v", i*i%300), Sensitive: i%7 == 0})
	}
	add(0)
	add(2, hpack.HeaderField{Name: ":method", Value: "POST"}, hpack.HeaderField{Name: "accept-language", Value: ""})
	add(len(many), many...)
	add(len(many), many...) // most are in the table now
	add(1, hpack.HeaderField{Name: "x-long", Value: strings.Repeat("\x00", 100<<10)})
	encoder.SetMaxDynamicTableSize(1 << 10)
	add(2, hpack.HeaderField{Name: "te", Value: "trailers"}) // one is the new size
	for i, block := range blocks {
		for _, size := range []int{1, 3, 1 << 20} {
			var f fields
			f.begin(flagPriority)
			got := f.count(make([]byte, 5))
			for piece := range slices.Chunk(block, size) {
				got += f.count(piece)
			}
			if got != wants[i] {
				t.Errorf("block %d in pieces of %d bytes: %d fields, want %d", i, size, got, wants[i])
			}
		}
	}
}

// TestFieldsTakePlaces checks that a request takes places for its header fields, of which each may
// be one byte on the wire, and that padding cannot hide them.
func TestFieldsTakePlaces(t *testing.T) {
	const indexed = "\x82" // :method: GET
	p := connect(t, Limits{Requests: NewRequests(100)})
	headers := func(id uint32, padding byte, block, more string) {
		_ = p.client.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte(block), PadLength: padding, EndHeaders: more == ""})
		if more != "" {
			_ = p.client.WriteContinuation(id, true, []byte(more))
		}
		p.read()
	}
	headers(1, 0, strings.Repeat(indexed, 100), "") // 12.5 KiB
	p.wants(1)
	headers(3, 0, strings.Repeat(indexed, 100), strings.Repeat(indexed, 100)) // 25 KiB
	p.wants(3)
	headers(5, 200, indexed, strings.Repeat(indexed, 100)) // padding counts
	p.wants(6)
	for _, id := range []uint32{1, 3, 5} {
		_ = p.server.WriteData(id, true, nil)
	}
	p.wants(0)
}
