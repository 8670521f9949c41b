package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/ForstaLabs/ephemeral-token-service/internal/listen"
)

// Run serves until ctx is done, then drains: it reports that it is not ready, keeps serving for
// DrainDelay, stops accepting connections, waits up to DrainTimeout for calls in progress, and ends
// the rest with an error. It returns nil after such a stop.
func (s *Server) Run(ctx context.Context) error {
	defer s.Close()
	s.ready.look() // so that the state is right when the first call is answered
	stop := ctx    // the group's context is also done when a listener fails
	group, ctx := errgroup.WithContext(ctx)
	if s.grpcListener != nil {
		group.Go(func() error { return serveGRPC(s.grpcServer, s.grpcListener) })
	}
	if s.httpListener != nil {
		group.Go(func() error { return serveHTTP(s.httpServer, s.httpListener) })
	}
	if s.adminListener != nil {
		group.Go(func() error { return serveHTTP(s.adminServer, s.adminListener) })
	}
	group.Go(func() error { return s.status.Run(ctx) })
	group.Go(func() error { return s.ready.watch(ctx, s.cfg.readinessInterval) })
	group.Go(func() error { return s.endUnread(ctx) })
	group.Go(func() error {
		<-ctx.Done()
		delay := s.cfg.DrainDelay
		if stop.Err() == nil { // a listener has failed
			delay = 0
		}
		return s.drain(delay)
	})
	return group.Wait()
}

// endUnread closes connections whose client has not read an answer in time, until ctx is done.
func (s *Server) endUnread(ctx context.Context) error {
	tick := time.NewTicker(unreadInterval)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			s.requests.EndOlder(now.Add(-s.cfg.CallCeiling - grpcAnswerTimeout))
		case <-ctx.Done():
			return nil
		}
	}
}

// unreadInterval is the time between two runs of EndOlder.
const unreadInterval = 5 * time.Second

// serveGRPC runs a gRPC server. It returns nil if the server was stopped, also before it began.
func serveGRPC(srv *grpc.Server, l net.Listener) error {
	if err := srv.Serve(l); !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// serveHTTP runs an HTTP server. It returns nil if the server was shut down.
func serveHTTP(srv *http.Server, l net.Listener) error {
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// drain stops the listeners after delay. Platforms keep sending calls for some time after SIGTERM,
// until they notice that the server is not ready. The admin listener stops last, so that probes can
// watch.
func (s *Server) drain(delay time.Duration) error {
	s.cfg.Logger.Info("draining", slog.String("delay", delay.String()), slog.String("timeout", s.cfg.DrainTimeout.String()))
	s.ready.set(stateDraining)
	<-time.After(delay) // a second signal ends the process, and with it this

	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.DrainTimeout+answerGrace)
	defer cancel()
	defer time.AfterFunc(idleGrace, s.endIdle).Stop()
	defer time.AfterFunc(s.cfg.DrainTimeout, func() {
		s.cfg.Logger.Warn("some calls did not finish within the drain timeout and were cut off")
		s.cutOff()
	}).Stop()
	var group errgroup.Group
	if s.grpcListener != nil {
		group.Go(func() error { return s.stopGRPC(ctx) })
	}
	if s.httpListener != nil {
		group.Go(func() error { return stopHTTP(ctx, s.httpServer) })
	}
	err := group.Wait()
	if errors.Is(err, context.DeadlineExceeded) { // logged above
		err = nil
	}
	if s.adminListener != nil {
		// Probes and scrapes are not worth a longer wait.
		ctx, cancel := context.WithTimeout(context.Background(), idleGrace)
		defer cancel()
		_ = stopHTTP(ctx, s.adminServer)
	}
	return err
}

// answerGrace is how long a call that is cut off has to send its answer.
const answerGrace = 500 * time.Millisecond

// idleGrace is how long a drain waits for connections and streams without a call in progress.
const idleGrace = 500 * time.Millisecond

// endIdle ends the streams of health and reflection, and closes the connections on which no request
// has begun.
func (s *Server) endIdle() {
	s.endStreams()
	for _, l := range []*listen.Listener{s.grpcListener, s.httpListener} {
		if l != nil {
			l.CloseSilent()
		}
	}
}

// stopGRPC waits for the calls in progress until ctx is done, then cuts off the rest and returns
// ctx's error.
func (s *Server) stopGRPC(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		s.grpcServer.GracefulStop() // GOAWAY on every connection
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		s.grpcListener.CloseAll() // Stop waits for handshakes otherwise
		s.grpcServer.Stop()
		<-done
		return ctx.Err()
	}
}

// stopHTTP waits for the calls in progress until ctx is done, then cuts off the rest and returns
// ctx's error.
func stopHTTP(ctx context.Context, srv *http.Server) error {
	err := srv.Shutdown(ctx)
	if err != nil {
		_ = srv.Close()
	}
	return err
}
