package server

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/tap"

	"github.com/ForstaLabs/ephemeral-token-service/internal/call"
	"github.com/ForstaLabs/ephemeral-token-service/internal/headers"
)

// messageTimeout is how long the message of a call may take to arrive once its headers have.
const messageTimeout = 8 * time.Second

// maxWaiting is how many calls may wait for their message at a time, on all connections. Each may have headers of 16 KiB and
// nearly all of a message of 64 KiB.
const maxWaiting = 1024

// openStream is the context of a stream that can be ended from within. grpc-go waits for a client's message for as long as the client
// likes, and runs no interceptor before it is there; what it waits with is the context that the tap returns, and nothing else.
type openStream struct {
	context.Context // grpc-go ends its parent with the stream

	cancel  context.CancelFunc
	waiting *call.Waiting
	place   call.Place // in waiting, until its message has come
}

type openStreamKey struct{}

// Value implements context.Context.
func (s *openStream) Value(key any) any {
	if key == (openStreamKey{}) {
		return s
	}
	return s.Context.Value(key)
}

// End implements call.Waiter.
func (s *openStream) End() { s.cancel() }

// arrived is called when the message has come, or the stream has handlers that wait for it themselves.
func (s *openStream) arrived() { s.waiting.Remove(&s.place) }

// tapStreams ends a stream whose message is late, or has waited longest when there are too many. It is not the place to refuse
// anything: it holds up its whole connection.
func tapStreams() tap.ServerInHandle {
	waiting := call.NewWaiting(maxWaiting, messageTimeout)
	return func(ctx context.Context, info *tap.Info) (context.Context, error) {
		s := &openStream{waiting: waiting}
		s.Context, s.cancel = context.WithCancel(headers.NewContext(ctx, info.Header))
		waiting.Add(&s.place, s)
		return s, nil
	}
}

// openStreamFrom returns the stream of a call. Each has passed the tap.
func openStreamFrom(ctx context.Context) *openStream {
	return ctx.Value(openStreamKey{}).(*openStream)
}

// endStreams lets go of the streams of health and reflection, which have no end of their own, when ended is done. They are
// outside the call chain, and a panic in one is its own all the same.
func endStreams(ended context.Context) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		open := openStreamFrom(stream.Context())
		open.arrived()
		defer context.AfterFunc(ended, open.cancel)()
		return recoverStream(srv, stream, info, handler)
	}
}

// recoverStream is [call.Recover] for a stream.
func recoverStream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = call.Panicked(v)
		}
	}()
	return handler(srv, stream)
}
