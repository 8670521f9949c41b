// Package server implements the ephemeral-token service: two RPCs, over gRPC and REST, behind one
// call chain.
//
// A call passes these steps: package listen accepts the connection and does TLS; streams.go (gRPC)
// or package rest receives the call; package call gives it an ID and a log line, applies limits,
// and authenticates the caller with package auth; service.go has the two RPCs; package tokencache
// shares concurrent calls for the same token and caches the answer; package atlas/resilient
// retries, and fails fast while Atlas is down; package atlas makes the HTTP request. Errors are
// returned unchanged up to package call, where package apierror turns them into public errors.
//
// The package reads no flags and no environment; Config has all settings.
package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/internal/call"
	"github.com/ForstaLabs/ephemeral-token-service/internal/config"
	"github.com/ForstaLabs/ephemeral-token-service/internal/docs"
	"github.com/ForstaLabs/ephemeral-token-service/internal/listen"
	"github.com/ForstaLabs/ephemeral-token-service/internal/lograte"
	"github.com/ForstaLabs/ephemeral-token-service/internal/rest"
	"github.com/ForstaLabs/ephemeral-token-service/internal/status"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
)

// Server is a service whose addresses are bound. Run serves; Close releases a Server that never
// ran.
type Server struct {
	cfg    Config
	ready  *readiness
	status *status.Page

	tokens      Tokens
	cache       *tokencache.Cache  // the same as tokens, unless a test has its own
	endStreams  context.CancelFunc // ends the streams of health and reflection
	cutOff      context.CancelFunc // ends the calls in progress
	requests    *listen.Requests   // those that wait for their clients
	refused     func(limit string) // counts a refused call
	grpcServer  *grpc.Server
	httpServer  *http.Server
	adminServer *http.Server

	grpcListener, httpListener, adminListener *listen.Listener // nil where off
}

// New validates cfg and binds every address, so that mistakes are found before the first call. The
// server answers once Run is called.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	if err := cfg.Metrics.Register(identityMetrics{cfg.Auth}); err != nil { // another Server has the registry
		return nil, err
	}
	var suppressed prometheus.Collector
	cfg.Logger, suppressed = lograte.Limit(cfg.Logger)
	requests := listen.NewRequests(cfg.maxRequests())
	s := &Server{cfg: cfg, requests: requests, refused: newRefusedCalls(cfg.Metrics)}
	s.ready = newReadiness(cfg.Auth, newChecks(s.look))
	registerMetrics(cfg.Metrics, suppressed)
	calls := call.NewMetrics(cfg.Metrics, ephemeraltokenv1.EphemeralTokenService_ServiceDesc)
	if err := s.openTokens(); err != nil {
		return nil, err
	}
	cut, cutOff := context.WithCancel(context.Background())
	s.cutOff = cutOff
	intercept := markWorking(call.New(call.Config{
		Logger: cfg.Logger, Audit: cfg.Audit, MaxCalls: cfg.MaxCalls, Ceiling: cfg.CallCeiling, Auth: cfg.Auth, Metrics: calls,
		CallerRate: cfg.CallerRate, Refused: s.refused,
		CutOff: cut, Tracer: cfg.tracer(), Propagator: cfg.Propagator,
	}))
	svc := &service{tokens: s.tokens}
	restHandler, err := newRESTHandler(rest.Config{
		Service: svc, Intercept: intercept, Logger: cfg.Logger, Metrics: calls, Origins: cfg.CORSOrigins,
		Overloaded: s.overloaded,
	}, cfg.Docs)
	if err != nil {
		s.Close()
		return nil, err
	}
	ended, endStreams := context.WithCancel(context.Background())
	s.endStreams = endStreams
	guard := &streams{refuse: call.NewRefusal(cfg.Logger, calls), refused: s.refused, ended: ended}
	s.grpcServer = newGRPCServer(guard, svc, intercept, s.ready.health, grpcOptions(cfg, guard, cfg.grpcCredentials()))
	s.httpServer = newHTTPServer(s.restFront(restHandler), cfg.CallCeiling, cfg.Logger)
	s.httpServer.Protocols = restProtocols()
	s.status = status.New(status.Config{
		Version: cfg.Version, Settings: cfg.Settings, State: s.ready.get, Checks: s.ready.checks.get, Metrics: cfg.Metrics,
	})
	s.adminServer = newHTTPServer(newAdminHandler(s.ready, s.status, cfg.Metrics, cfg.Debug), cfg.CallCeiling, cfg.Logger)
	s.adminServer.MaxHeaderBytes = call.MaxHeaderBytes // it has HTTP/1 only, and no limit of requests
	s.registerGauges(guard)
	if err := s.listen(connectionLimits(cfg, requests), newFailedHandshakes(cfg.Metrics, cfg.Logger)); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// newRESTHandler returns the REST handler, with the API page if withDocs is set.
func newRESTHandler(cfg rest.Config, withDocs bool) (http.Handler, error) {
	if withDocs {
		pages, err := docs.Pages()
		if err != nil {
			return nil, err
		}
		cfg.Pages = pages
	}
	return rest.NewHandler(cfg)
}

// openTokens makes the token cache.
func (s *Server) openTokens() error {
	if s.cfg.Tokens != nil {
		s.tokens = s.cfg.Tokens(s.cfg.Atlas)
		return nil
	}
	cfg := s.cfg.Cache
	cfg.CallTimeout, cfg.Registerer, cfg.Logger, cfg.Tracer = s.cfg.CallCeiling, s.cfg.Metrics, s.cfg.Logger, s.cfg.tracer()
	cache, err := tokencache.New(s.cfg.Atlas, cfg)
	if err != nil {
		return err
	}
	s.cache, s.tokens = cache, cache
	return nil
}

// look checks everything that calls depend on.
func (s *Server) look() []status.Check {
	var found []status.Check
	if checked, ok := s.cfg.Atlas.(interface{ Check() error }); ok {
		found = append(found, status.Check{Name: "Atlas", Err: checked.Check()})
	}
	profiles, issuers := s.cfg.Auth.Profiles(), s.cfg.Auth.Issuers()
	for _, profile := range slices.Sorted(maps.Keys(profiles)) {
		check := status.Check{Name: "profile " + profile}
		if err := profiles[profile].Err; err != nil {
			check.Err = fmt.Errorf("%s: %w", check.Name, err)
		}
		found = append(found, check)
	}
	for _, url := range slices.Sorted(maps.Keys(issuers)) {
		found = append(found, status.Check{Name: "OIDC issuer " + url, Err: issuers[url].Err})
	}
	if s.cfg.CheckFiles != nil {
		found = append(found, status.Check{Name: "files", Err: s.cfg.CheckFiles()})
	}
	if s.cfg.Cache.Redis != nil {
		found = append(found, status.Check{Name: "Redis", Err: s.tokens.Check()})
	}
	return found
}

func (s *Server) listen(limits func(listener string) listen.Limits, handshakes failedHandshakes) error {
	var errs []error
	bindTo := []**listen.Listener{&s.grpcListener, &s.httpListener, &s.adminListener}
	for i, l := range s.cfg.listeners() {
		if l.addr == "" {
			continue
		}
		limit := limits(l.name)
		bound, err := s.bind(l.addr, limit)
		if err == nil && bindTo[i] == &s.grpcListener {
			if err = bound.Share(s.cfg.GRPCSocketMode); err != nil {
				_ = bound.Close()
			}
		}
		if err != nil {
			errs = append(errs, &config.Error{Field: l.field, Err: fmt.Errorf("%s: %w", l.addr, err), MayPass: true})
			continue
		}
		if protocols := alpn[l.name]; protocols != nil && s.cfg.TLS.Certificate != nil {
			bound.Secure(s.cfg.tlsConfig(protocols...), handshakes.on(l.name))
		}
		*bindTo[i] = bound
		registerConnections(s.cfg.Metrics, l.name, bound, limit.Total)
	}
	if s.grpcListener != nil {
		s.grpcListener.RequireHTTP2(s.grpcOnly())
	}
	return errors.Join(errs...)
}

// grpcOnly returns the answer to a request of HTTP/1 on the gRPC address.
func (s *Server) grpcOnly() string {
	return "This port speaks gRPC (HTTP/2); REST is " + whereREST(s.HTTPAddr(), s.cfg.TLS.Certificate != nil) + ".\n"
}

// whereREST says where REST is served. addr is nil if it is not.
func whereREST(addr net.Addr, secure bool) string {
	if addr == nil {
		return "off"
	}
	scheme, where := "http", addr.String()
	if secure {
		scheme = "https"
	}
	if tcp, ok := addr.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() { // which no client can call
		where = "HOST:" + strconv.Itoa(tcp.Port)
	}
	return "on " + scheme + "://" + where
}

// alpn has the ALPN protocols of the listeners that serve TLS.
var alpn = map[string][]string{onGRPC: {"h2"}, onHTTP: {"h2", "http/1.1"}}

// bind listens on an address with limits.
func (s *Server) bind(addr string, limits listen.Limits) (*listen.Listener, error) {
	if s.cfg.Listen == nil {
		return listen.On(addr, limits)
	}
	l, err := s.cfg.Listen(addr)
	if err != nil {
		return nil, err
	}
	return listen.Track(l, limits), nil
}

// GRPCAddr returns the bound gRPC address, or nil if that listener is off.
func (s *Server) GRPCAddr() net.Addr { return boundAddr(s.grpcListener) }

// HTTPAddr returns the bound REST address, or nil if that listener is off.
func (s *Server) HTTPAddr() net.Addr { return boundAddr(s.httpListener) }

// AdminAddr returns the bound admin address, or nil if that listener is off.
func (s *Server) AdminAddr() net.Addr { return boundAddr(s.adminListener) }

func boundAddr(l *listen.Listener) net.Addr {
	if l == nil {
		return nil
	}
	return l.Addr()
}

// Close releases the addresses of a server that does not run. The context of Run stops one that
// runs.
func (s *Server) Close() {
	for _, l := range []*listen.Listener{s.grpcListener, s.httpListener, s.adminListener} {
		if l != nil {
			_ = l.Close() // it may be closed already
		}
	}
	if s.cache != nil {
		s.cache.Close()
	}
	if s.grpcServer != nil {
		s.grpcServer.Stop() // ends its workers, also if it never ran
	}
}
