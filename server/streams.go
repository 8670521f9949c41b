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

// messageTimeout is how long a call's message may take to arrive after its headers.
const messageTimeout = 8 * time.Second

// Limits on open streams of health and reflection. They may stay open indefinitely, and each may
// hold a message of 64 KiB in both directions.
const (
	maxStandingPerConn = 4
	maxStanding        = 256
)

// The names of limits that a stream can exceed, beside those of package call.
const (
	requestsLimit = "requests"
	standingLimit = "streams"
)

// streams limits the streams of the gRPC listener. Their age is bounded by that of their
// connection.
type streams struct {
	refuse   func(ctx context.Context, method string, reason apierror.Reason) error
	refused  func(limit string)
	ended    context.Context //nolint:containedctx // done when the server drains
	standing atomic.Int64    // streams of health and reflection that are open
}

// register adds a service to srv. Its unary calls run as streams of one message, because grpc-go
// reads the message of a unary call before it runs an interceptor, and waits for it without a
// timeout.
func (s *streams) register(srv *grpc.Server, desc grpc.ServiceDesc, impl any, intercept grpc.UnaryServerInterceptor) {
	desc.Streams = slices.Clone(desc.Streams)
	for _, m := range desc.Methods {
		info := &grpc.StreamServerInfo{FullMethod: "/" + desc.ServiceName + "/" + m.MethodName}
		serve := func(impl any, stream grpc.ServerStream) error {
			resp, err := m.Handler(impl, stream.Context(), stream.RecvMsg, intercept)
			if err != nil {
				return err
			}
			return stream.SendMsg(resp)
		}
		desc.Streams = append(desc.Streams, grpc.StreamDesc{StreamName: m.MethodName, Handler: func(impl any, stream grpc.ServerStream) error {
			// grpc-go runs stream interceptors only where ClientStreams or ServerStreams is set.
			return s.intercept(impl, stream, info, serve)
		}})
	}
	desc.Methods = nil
	srv.RegisterService(&desc, impl)
}

// intercept is a grpc.StreamServerInterceptor.
func (s *streams) intercept(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer call.Recover(&err)
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
	return handler(srv, waiting)
}

// admitStanding counts a stream of health or reflection until release is called, or reports that
// there are too many.
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

// waitingStream is a stream whose first message has to arrive before timer fires.
type waitingStream struct {
	grpc.ServerStream

	timer   *time.Timer
	arrived bool // used by the one goroutine that receives
}

// RecvMsg implements grpc.ServerStream.
func (s *waitingStream) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if err == nil && !s.arrived {
		if !s.timer.Stop() { // the call has been refused
			return context.Canceled
		}
		s.arrived = true
	}
	return err
}

// endStream ends a stream with a status while its handler waits for the client. The handler itself
// cannot return then, and a cancelled context would become CANCELLED.
func endStream(ctx context.Context, st *status.Status) {
	stream := grpc.ServerTransportStreamFromContext(ctx)
	if s, ok := stream.(interface{ WriteStatus(*status.Status) error }); ok {
		_ = s.WriteStatus(st) // fails only if the stream has ended
	}
}

// connOf returns the connection of a gRPC call.
func connOf(ctx context.Context) *listen.Conn {
	p, _ := peer.FromContext(ctx)
	return listen.FromAddr(p.Addr)
}

// markWorking runs chain, and marks the call as not waiting for its client meanwhile.
func markWorking(chain grpc.UnaryServerInterceptor) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		conn := listen.FromContext(ctx) // over REST
		if conn == nil {
			conn = connOf(ctx)
		}
		conn.StartWork()
		defer conn.EndWork()
		return chain(ctx, req, info, handler)
	}
}

type oversizedKey struct{}

// markOversized marks calls whose metadata exceeds call.MaxHeaderBytes. It does not refuse them:
// grpc-go leaks the timer of a call that a tap refuses.
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

// maxServiceName is the longest service name that health accepts.
const maxServiceName = 256

// boundedHealth is a health server that refuses long service names, which health.Server would
// store.
type boundedHealth struct{ healthpb.HealthServer }

// Watch implements healthpb.HealthServer.
func (h boundedHealth) Watch(req *healthpb.HealthCheckRequest, stream grpc.ServerStreamingServer[healthpb.HealthCheckResponse]) error {
	if len(req.GetService()) > maxServiceName {
		return status.Error(codes.NotFound, "unknown service")
	}
	return h.HealthServer.Watch(req, stream)
}
