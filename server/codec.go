package server

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that is wrapped here
	"google.golang.org/grpc/mem"
)

// maxWireBytes is the message size at which grpc-go itself gives up. It is above maxBodyBytes so that a message a little
// too large is refused in the form of our contract; one far too large is not read at all.
const maxWireBytes = 4 * maxBodyBytes

// inbound is a message to be decoded. What is wrong with it ends up in err, not in the codec's result: grpc-go answers a
// codec's error by itself, at once, without the details that every error of this service has.
type inbound struct {
	msg any
	err error
}

// codec is grpc-go's codec for protobuf, for which an inbound never fails.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	in, ok := v.(*inbound)
	if !ok { // health and reflection
		return c.CodecV2.Unmarshal(data, v)
	}
	switch {
	case data.Len() > maxBodyBytes:
		in.err = &callError{reason: reasonRequestTooLarge}
	case c.CodecV2.Unmarshal(data, in.msg) != nil:
		// INTERNAL is what every gRPC implementation answers here.
		in.err = &callError{reason: reasonRequestMalformed, code: codes.Internal, cause: errUndecodable}
	}
	return nil
}

// errUndecodable is why a request was not decoded, without a word of it.
var errUndecodable = errors.New("the request cannot be decoded")

// decodeInbound is decode, but with the contract's errors.
func decodeInbound(ctx context.Context, decode func(any) error) func(any) error {
	return func(msg any) error {
		in := inbound{msg: msg}
		arrived := awaitMessage(ctx)
		err := decode(&in)
		arrived()
		switch {
		case err == nil:
			return in.err
		case ctx.Err() != nil: // the caller left, or its deadline passed, before its message was here
			return ctx.Err()
		}
		return &callError{reason: reasonRequestMalformed, code: codes.Internal, cause: errUndecodable}
	}
}
