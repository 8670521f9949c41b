package server

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
	"github.com/ForstaLabs/ephemeral-token-service/internal/call"
	"github.com/ForstaLabs/ephemeral-token-service/internal/listen"
)

// messageTimeout is how long the message of a call may take to arrive once its headers have.
const messageTimeout = 8 * time.Second

// How many streams of health and reflection may be open. They have no end of their own, and each may hold a message of
// 64 KiB in both directions.
const (
	maxStandingPerConn = 4
	maxStanding        = 256
)

// The limits that a stream can be refused for, beside those of package call.
const (
	requestsLimit = "requests"
	standingLimit = "streams"
)

// streams guards the streams of the gRPC listener, before their messages arrive and while they last. Their age is bounded
// by that of their connection.
type streams struct {
	refuse   func(ctx context.Context, method string, reason apierror.Reason) error
	refused  func(limit string)
	ended    context.Context //nolint:containedctx // done when the server drains
	standing atomic.Int64    // streams of health and reflection that are open
}

// register adds a service. Its unary calls run as streams of one message each, because grpc-go reads the message of a
// unary call before any code of ours runs, and waits for it as long as the client likes.
func (s *streams) register(srv *grpc.Server, desc grpc.ServiceDesc, impl any, intercept grpc.UnaryServerInterceptor) {
	desc.Streams = slices.Clone(desc.Streams)
	for _, m := range desc.Methods {
		info := &grpc.StreamServerInfo{FullMethod: "/" + desc.ServiceName + "/" + m.MethodName}
		call := func(impl any, stream grpc.ServerStream) error {
			resp, err := m.Handler(impl, stream.Context(), stream.RecvMsg, intercept)
			if err != nil {
				return err
			}
			return stream.SendMsg(resp)
		}
		desc.Streams = append(desc.Streams, grpc.StreamDesc{StreamName: m.MethodName, Handler: func(impl any, stream grpc.ServerStream) error {
			return s.intercept(impl, stream, info, call) // grpc-go runs interceptors of streams on those of several messages
		}})
	}
	desc.Methods = nil
	srv.RegisterService(&desc, impl)
}

// intercept is a grpc.StreamServerInterceptor.
func (s *streams) intercept(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx := stream.Context()
	conn := connOf(ctx)
	switch {
	case ctx.Value(oversizedKey{}) != nil:
		return s.refuse(ctx, info.FullMethod, apierror.HeadersTooLarge)
	case !conn.Admit():
		s.refused(requestsLimit)
		return s.refuse(ctx, info.FullMethod, apierror.Overloaded)
	}
	if known := srv != nil; known && (info.IsClientStream || info.IsServerStream) {
		release, ok := s.admitStanding(conn)
		if !ok {
			s.refused(standingLimit)
			return s.refuse(ctx, info.FullMethod, apierror.Overloaded)
		}
		defer release()
		end := func() { endStream(ctx, status.New(codes.Unavailable, "the stream ends: open a new one")) }
		defer context.AfterFunc(s.ended, end)()
	}
	waiting := &waitingStream{ServerStream: stream}
	waiting.timer = time.AfterFunc(messageTimeout, func() {
		endStream(ctx, status.Convert(s.refuse(ctx, info.FullMethod, apierror.Overloaded)))
	})
	defer waiting.timer.Stop()
	return recoverStream(srv, waiting, info, handler)
}

// admitStanding counts a stream of health or reflection until release is called.
func (s *streams) admitStanding(conn *listen.Conn) (release func(), ok bool) {
	drop, ok := conn.Hold(maxStandingPerConn)
	if !ok {
		return nil, false
	}
	release = func() {
		s.standing.Add(-1)
		drop()
	}
	if s.standing.Add(1) > maxStanding {
		release()
		return nil, false
	}
	return release, true
}

// waitingStream is a stream whose first message is due.
type waitingStream struct {
	grpc.ServerStream

	timer   *time.Timer
	arrived bool // Only one goroutine of a handler receives.
}

// RecvMsg implements grpc.ServerStream.
func (s *waitingStream) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if err == nil && !s.arrived {
		if !s.timer.Stop() { // the caller has been refused
			return context.Canceled
		}
		s.arrived = true
	}
	return err
}

// endStream ends a stream while its handler waits for the client. grpc-go has no other way to end one with a status of our
// choice: a handler that has to return first cannot, and a cancelled context becomes CANCELLED.
func endStream(ctx context.Context, st *status.Status) {
	stream := grpc.ServerTransportStreamFromContext(ctx)
	if s, ok := stream.(interface{ WriteStatus(*status.Status) error }); ok {
		_ = s.WriteStatus(st) // fails if the stream has ended already
	}
}

// connOf returns the connection of a call over gRPC.
func connOf(ctx context.Context) *listen.Conn {
	p, _ := peer.FromContext(ctx)
	return listen.FromAddr(p.Addr)
}

// working runs a chain, while the call does not wait for its client.
func working(chain grpc.UnaryServerInterceptor) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		conn := listen.FromContext(ctx) // over REST
		if conn == nil {
			conn = connOf(ctx)
		}
		conn.Work()
		defer conn.Rest()
		return chain(ctx, req, info, handler)
	}
}

type oversizedKey struct{}

// markOversized marks the calls whose metadata exceeds the contract's limit. grpc-go's own limit is higher, because it
// ends the whole connection, with other calls on it. The tap must not refuse anything: grpc-go leaks the timer of a call
// that is refused here.
func markOversized(ctx context.Context, info *tap.Info) (context.Context, error) {
	if metadataBytes(info.Header) > call.MaxHeaderBytes {
		return context.WithValue(ctx, oversizedKey{}, true), nil
	}
	return ctx, nil
}

// metadataBytes returns the size of metadata as HTTP/2 counts it (RFC 9113, section 6.5.2).
func metadataBytes(md metadata.MD) int {
	n := 0
	for name, values := range md {
		for _, value := range values {
			n += len(name) + len(value) + 32
		}
	}
	return n
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

// maxServiceName is the longest name of a service that health is asked about.
const maxServiceName = 256

// boundedHealth is a health server that does not keep the long names of services that do not exist.
type boundedHealth struct{ healthpb.HealthServer }

// Watch implements healthpb.HealthServer.
func (h boundedHealth) Watch(req *healthpb.HealthCheckRequest, stream grpc.ServerStreamingServer[healthpb.HealthCheckResponse]) error {
	if len(req.GetService()) > maxServiceName {
		return status.Error(codes.NotFound, "unknown service")
	}
	return h.HealthServer.Watch(req, stream)
}
