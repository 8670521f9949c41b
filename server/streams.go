package server

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/tap"

	"github.com/ForstaLabs/ephemeral-token-service/server/chain"
)

// messageTimeout is how long the message of a call may take to arrive once its headers have.
const messageTimeout = 8 * time.Second

// openStream is how a stream is ended from within. grpc-go waits for a client's message for as long as the client likes, and
// runs no interceptor before it is there; what it waits with is the context that the tap returns, and nothing else.
type openStream struct {
	end     context.CancelFunc
	arrived func() // its message has come, or it has handlers that wait for it themselves
}

type openStreamKey struct{}

// tapStream ends a stream whose message is late. It is not the place to refuse anything: it holds up its whole connection.
func tapStream(ctx context.Context, _ *tap.Info) (context.Context, error) {
	ctx, end := context.WithCancel(ctx) // grpc-go ends its parent with the stream
	late := time.AfterFunc(messageTimeout, end)
	// Streams that are reset at once would leave their headers in memory until the timer fires.
	forget := context.AfterFunc(ctx, func() { late.Stop() })
	arrived := func() {
		forget()
		late.Stop()
	}
	return context.WithValue(ctx, openStreamKey{}, openStream{end, arrived}), nil
}

func openStreamFrom(ctx context.Context) openStream {
	open, _ := ctx.Value(openStreamKey{}).(openStream) // each stream has passed the tap
	return open
}

// messageArrived is outside of everything that a call runs through.
func messageArrived(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	openStreamFrom(ctx).arrived()
	return handler(ctx, req)
}

// endStreams lets go of the streams of health and reflection, which have no end of their own, when ended is done. They are
// outside the call chain, and a panic in one is its own all the same.
func endStreams(ended context.Context) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
		open := openStreamFrom(stream.Context())
		open.arrived()
		defer context.AfterFunc(ended, open.end)()
		defer func() {
			if v := recover(); v != nil {
				err = chain.Panicked(v)
			}
		}()
		return handler(srv, stream)
	}
}
