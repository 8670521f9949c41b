package server

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ForstaLabs/ephemeral-token-service/internal/listen"
)

// drain ends the server's listeners, once whoever sends calls here has had the delay to notice that it is no longer ready: a
// platform takes an address out of its lists some time after it has sent SIGTERM, and sends calls there until then. The admin
// listener goes last, so that probes can watch.
func (s *Server) drain(delay time.Duration) error {
	s.cfg.Logger.Info("draining", slog.String("delay", delay.String()), slog.String("timeout", s.cfg.DrainTimeout.String()))
	s.ready.set(stateDraining)
	<-time.After(delay) // a second signal ends the process, and with it this

	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.DrainTimeout+lastWords)
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
	if errors.Is(err, context.DeadlineExceeded) { // which has been logged
		err = nil
	}
	if s.adminListener != nil {
		// Nobody's call is lost with a probe, so what is open after a moment is cut off without a word.
		ctx, cancel := context.WithTimeout(context.Background(), idleGrace)
		defer cancel()
		_ = stopHTTP(ctx, s.adminServer)
	}
	return err
}

// lastWords is how long a call that is cut off has for its answer.
const lastWords = 500 * time.Millisecond

// idleGrace is how long a drain waits for what is open and has no call in progress.
const idleGrace = 500 * time.Millisecond

// endIdle ends the streams that have no end of their own, and closes the connections on which nothing has arrived.
func (s *Server) endIdle() {
	s.endStreams()
	for _, l := range []*listen.Listener{s.grpcListener, s.httpListener} {
		if l != nil {
			l.CloseSilent()
		}
	}
}

// stopGRPC is stopHTTP for gRPC.
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

// stopHTTP answers the calls in progress until ctx is done, and cuts off what is left then. Its error is ctx's in that case.
func stopHTTP(ctx context.Context, srv *http.Server) error {
	err := srv.Shutdown(ctx)
	if err != nil {
		_ = srv.Close()
	}
	return err
}
