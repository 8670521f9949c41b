// Package server is the ephemeral-token service: two RPCs, over gRPC and as REST routes, behind one call chain.
//
// The way of a call: grpc-go decodes its message, or package rest makes one of a request; package chain gives it an id, a place
// among those in progress and an answer to who is calling; service.go has the two RPCs; package tokencache shares the call with
// others that ask for the same token, and remembers; Atlas is asked. What goes wrong on the way comes back as it is, and leaves
// by one table, that of package apierror.
//
// The package reads no flags and no environment; Config has everything it needs to know.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"

	"github.com/ForstaLabs/ephemeral-token-service/server/chain"
	"github.com/ForstaLabs/ephemeral-token-service/server/listen"
	"github.com/ForstaLabs/ephemeral-token-service/server/rest"
	"github.com/ForstaLabs/ephemeral-token-service/server/tokencache"
)

// Server is a bound but not yet serving service. Close or Run releases what New took.
type Server struct {
	cfg   Config
	ready readiness

	certificates *certificates // nil without TLS
	tokens       Tokens
	cache        *tokencache.Cache // what tokens is, unless a test has its own
	health       *health.Server
	endStreams   context.CancelFunc // lets go of the streams of health and reflection
	grpcServer   *grpc.Server
	httpServer   *http.Server
	adminServer  *http.Server

	grpcListener, httpListener, adminListener *listen.Listener // nil where off
}

// New validates cfg, loads the TLS files and binds every address, so that whatever is wrong is known before the first
// call. The server answers once Run is called.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	s := &Server{cfg: cfg, health: newHealth()}
	var (
		grpcTLS, httpTLS *tls.Config
		metrics          []prometheus.Collector
	)
	if cfg.TLS.Enabled() {
		certs, err := cfg.TLS.open(cfg.Logger)
		if err != nil {
			return nil, err
		}
		s.certificates = certs
		demand := cfg.clientCerts()
		grpcTLS, httpTLS = certs.config(demand, "h2"), certs.config(demand, "h2", "http/1.1")
		metrics = append(metrics, certs.metrics()...)
	}
	if err := registerMetrics(cfg.Metrics, metrics); err != nil {
		return nil, err
	}
	if err := s.openTokens(); err != nil {
		return nil, err
	}
	intercept := chain.New(chain.Config{
		Logger: cfg.Logger, Audit: cfg.Audit, MaxCalls: cfg.MaxCalls, Ceiling: cfg.CallCeiling, Auth: cfg.Auth,
	})
	svc := &service{tokens: s.tokens}
	restHandler, err := rest.NewHandler(svc, intercept, cfg.Logger)
	if err != nil {
		s.Close()
		return nil, err
	}
	ended, endStreams := context.WithCancel(context.Background())
	s.endStreams = endStreams
	s.grpcServer = newGRPCServer(svc, s.health, grpcOptions(ended, cfg, intercept, grpcTLS))
	s.httpServer = newHTTPServer(restHandler, cfg.CallCeiling, cfg.Logger)
	s.httpServer.TLSConfig = httpTLS
	s.adminServer = newHTTPServer(newAdminHandler(&s.ready, s.warnings, cfg.Metrics), cfg.CallCeiling, cfg.Logger)
	if err := s.listen(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// openTokens makes the cache that the Config describes.
func (s *Server) openTokens() error {
	if s.cfg.newTokens != nil {
		s.tokens = s.cfg.newTokens(s.cfg.Atlas)
		return nil
	}
	cfg := s.cfg.Cache
	cfg.CallTimeout, cfg.Registerer, cfg.Logger = s.cfg.CallCeiling, s.cfg.Metrics, s.cfg.Logger
	cache, err := tokencache.New(s.cfg.Atlas, cfg)
	if err != nil {
		return err
	}
	s.cache, s.tokens = cache, cache
	return nil
}

// warnings are what an operator should know of, nil if all is well.
func (s *Server) warnings() error {
	return errors.Join(s.cfg.Auth.Check(), s.tokens.Check())
}

func (s *Server) listen() error {
	var errs []error
	for _, l := range []struct {
		name, addr string
		listener   **listen.Listener
	}{
		{"gRPC", s.cfg.GRPCAddr, &s.grpcListener},
		{"HTTP", s.cfg.HTTPAddr, &s.httpListener},
		{"admin", s.cfg.AdminAddr, &s.adminListener},
	} {
		if l.addr == "" {
			continue
		}
		bound, err := listen.On(l.addr)
		if err != nil {
			errs = append(errs, &listen.Error{Listener: l.name, Addr: l.addr, Err: err})
			continue
		}
		*l.listener = bound
	}
	return errors.Join(errs...)
}

// GRPCAddr is the bound gRPC address, nil if it is off. HTTPAddr and AdminAddr are the same for the others.
func (s *Server) GRPCAddr() net.Addr { return boundAddr(s.grpcListener) }

// HTTPAddr is the bound REST address, nil if it is off.
func (s *Server) HTTPAddr() net.Addr { return boundAddr(s.httpListener) }

// AdminAddr is the bound admin address, nil if it is off.
func (s *Server) AdminAddr() net.Addr { return boundAddr(s.adminListener) }

func boundAddr(l *listen.Listener) net.Addr {
	if l == nil {
		return nil
	}
	return l.Addr()
}

// Close releases the addresses of a server that does not run. One that runs is stopped by its context.
func (s *Server) Close() {
	for _, l := range []*listen.Listener{s.grpcListener, s.httpListener, s.adminListener} {
		if l != nil {
			_ = l.Close() // it may be closed already
		}
	}
	if s.cache != nil {
		s.cache.Close()
	}
}

// Run serves until ctx is done, then drains: it stops being ready, takes no new connection, answers the calls in
// progress, and after DrainTimeout cuts off what is left. It returns nil after a clean stop, else what failed.
func (s *Server) Run(ctx context.Context) error {
	defer s.Close()
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
	if s.certificates != nil {
		group.Go(func() error { return s.certificates.run(ctx, s.cfg.reloadInterval) })
	}
	setServing(s.health)
	s.ready.set(stateReady)
	group.Go(func() error {
		<-ctx.Done()
		return s.drain()
	})
	return group.Wait()
}

// serveGRPC reports why a gRPC server stopped, unless it was asked to, be it before it began.
func serveGRPC(srv *grpc.Server, l net.Listener) error {
	if err := srv.Serve(l); !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// serveHTTP reports why an HTTP server stopped, unless it was asked to.
func serveHTTP(srv *http.Server, l net.Listener) error {
	var err error
	if srv.TLSConfig != nil {
		err = srv.ServeTLS(l, "", "")
	} else {
		err = srv.Serve(l)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// drain ends the server's listeners. The admin listener goes last, so that probes can watch.
func (s *Server) drain() error {
	s.cfg.Logger.Info("draining", slog.String("timeout", s.cfg.DrainTimeout.String()))
	s.ready.set("draining")
	s.health.Shutdown() // watchers are told
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.DrainTimeout)
	defer cancel()
	defer time.AfterFunc(idleGrace, s.endIdle).Stop()
	var group errgroup.Group
	if s.grpcListener != nil {
		group.Go(func() error { return s.stopGRPC(ctx) })
	}
	if s.httpListener != nil {
		group.Go(func() error { return stopHTTP(ctx, s.httpServer) })
	}
	err := group.Wait()
	if s.adminListener != nil {
		// Nobody's call is lost with a probe, so what is open after a moment is cut off without a word.
		ctx, cancel := context.WithTimeout(context.Background(), idleGrace)
		defer cancel()
		_ = stopHTTP(ctx, s.adminServer)
	}
	return err
}

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

var errDrainTimeout = errors.New("some calls did not finish within the drain timeout and were cut off")

// stopGRPC is stopHTTP for gRPC.
func (s *Server) stopGRPC(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		s.grpcServer.GracefulStop()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		s.grpcListener.CloseAll() // Stop waits for handshakes otherwise
		s.grpcServer.Stop()
		<-done
		return errDrainTimeout
	}
}

// stopHTTP answers the calls in progress until ctx is done, and cuts off what is left then.
func stopHTTP(ctx context.Context, srv *http.Server) error {
	err := srv.Shutdown(ctx)
	if err != nil {
		_ = srv.Close()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return errDrainTimeout
	}
	return err
}
