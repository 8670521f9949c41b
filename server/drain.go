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

// endIdle ends the streams of health and reflection, and closes the connections on which nothing
// has arrived.
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
