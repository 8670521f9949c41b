package spiffe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// agent is the Workload API of one. Of gRPC it needs a single method, which over HTTP/2 is this page. The client of go-spiffe and
// grpc-go would make the program half a megabyte larger.
// https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
type agent struct{ *http.Transport }

// newAgent connects to nothing yet. The address is one that CheckAddr takes.
func newAgent(addr string) agent {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	return agent{&http.Transport{
		Protocols: &protocols,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			socket, err := socketOf(addr)
			if err != nil {
				return nil, err
			}
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
}

// watch passes on what the agent gives, now and with each change, until ctx or the agent ends that. It always returns why.
func (a agent) watch(ctx context.Context, give func(*workload.X509SVIDResponse)) error {
	request := bytes.NewReader(make([]byte, frameHeader)) // an empty message
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost"+workload.SpiffeWorkloadAPI_FetchX509SVID_FullMethodName, request)
	if err != nil {
		return err
	}
	req.Header = http.Header{
		"Content-Type": {"application/grpc"}, "Te": {"trailers"},
		"Workload.spiffe.io": {"true"}, // that nobody else has made us ask (SPIFFE Workload Endpoint §3)
	}
	resp, err := a.RoundTrip(req)
	if err != nil {
		return cutOff(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/grpc") {
		return fmt.Errorf("%w: it answers HTTP status %d", ErrNoAgent, resp.StatusCode)
	}
	for {
		message, err := readFrame(resp.Body)
		switch {
		case errors.Is(err, io.EOF):
			return ended(resp)
		case err != nil:
			return cutOff(err)
		}
		given := &workload.X509SVIDResponse{}
		if err := proto.Unmarshal(message, given); err != nil {
			return fmt.Errorf("%w: %w", ErrNoAgent, err)
		}
		give(given)
	}
}

const (
	frameHeader = 5       // whether the message is compressed, and its length
	maxMessage  = 4 << 20 // grpc-go's own limit
)

// readFrame returns a message, or io.EOF if there is no more.
func readFrame(r io.Reader) ([]byte, error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(header[1:])
	if header[0] != 0 || length > maxMessage { // we have said of no compression that we know it
		return nil, errors.New("its answer is compressed, or larger than 4 MiB")
	}
	message := make([]byte, length)
	if _, err := io.ReadFull(r, message); err != nil {
		return nil, fmt.Errorf("its answer ends too early: %w", noEOF(err))
	}
	return message, nil
}

// noEOF is for an end where there should be none.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// cutOff is about a connection that never was, or that is no more.
func cutOff(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return ErrNoAnswer
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}

// causes are by gRPC's codes.
var causes = map[codes.Code]error{
	codes.OK:               ErrUnreachable,
	codes.PermissionDenied: ErrNotRegistered,
	codes.Unavailable:      ErrUnreachable,
	codes.DeadlineExceeded: ErrNoAnswer,
	codes.Unimplemented:    ErrNoAgent,
}

// ended is what the agent says at the end of an answer.
func ended(resp *http.Response) error {
	last := resp.Trailer
	if last.Get("Grpc-Status") == "" { // an answer of headers alone
		last = resp.Header
	}
	number, err := strconv.ParseUint(last.Get("Grpc-Status"), 10, 32)
	if err != nil {
		return fmt.Errorf("%w: it has hung up", ErrUnreachable)
	}
	code := codes.Code(number)
	cause := causes[code]
	if cause == nil {
		cause = fmt.Errorf("%w: %v", ErrFailed, code)
	}
	said, err := url.PathUnescape(last.Get("Grpc-Message"))
	if err != nil || said == "" {
		said = "it has ended the stream"
	}
	return fmt.Errorf("%w: %s", cause, said)
}
