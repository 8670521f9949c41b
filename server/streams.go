package server

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/tap"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// messageTimeout is how long the message of a call may take to arrive once its headers have.
const messageTimeout = 8 * time.Second

type cancelKey struct{}

// streamTap makes every stream one that can be ended from within, since grpc-go waits for a client's messages for as long
// as the client likes. A call ends when its message is late, see awaitMessage. Reflection, whose streams have no end of
// their own, ends when the server drains; health watches end there by themselves.
func streamTap(draining <-chan struct{}) tap.ServerInHandle {
	calls := "/" + ephemeraltokenv1.EphemeralTokenService_ServiceDesc.ServiceName + "/"
	return func(ctx context.Context, info *tap.Info) (context.Context, error) {
		// Neither context leaks: grpc-go ends their parent with the stream.
		switch {
		case strings.HasPrefix(info.FullMethodName, calls):
			ctx, cancel := context.WithCancel(ctx)
			return context.WithValue(ctx, cancelKey{}, cancel), nil
		case strings.HasPrefix(info.FullMethodName, "/grpc.reflection."):
			ctx, cancel := context.WithCancel(ctx)
			go func() {
				defer cancel()
				select {
				case <-draining:
				case <-ctx.Done():
				}
			}()
			return ctx, nil
		}
		return ctx, nil
	}
}

// awaitMessage ends the call of ctx unless the returned function is called within messageTimeout.
func awaitMessage(ctx context.Context) (arrived func() bool) {
	cancel, ok := ctx.Value(cancelKey{}).(context.CancelFunc)
	if !ok {
		return func() bool { return true }
	}
	return time.AfterFunc(messageTimeout, cancel).Stop
}

// recoverStream is recoverPanic for the streams of health and reflection, which are outside the call chain.
func recoverStream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = panicked(v)
		}
	}()
	return handler(srv, stream)
}
