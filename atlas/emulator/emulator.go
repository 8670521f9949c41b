package emulator

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Config says what kind of Atlas to start. The zero value is a good one.
type Config struct {
	// Addr is the loopback host:port to listen on. Default "127.0.0.1:0".
	Addr string
	// Orgs is the number of orgs, each with one bot user. Default 2.
	Orgs int
	// JWTLifetime is the time from a JWT's issue to its exp. Default 1 hour.
	JWTLifetime time.Duration
	// RefreshWindow is how long after the login (orig_iat) a JWT can still be
	// refreshed. Default 7 days.
	RefreshWindow time.Duration
	// Now is the clock for JWTs; certificates and faults use the real one.
	// Default time.Now. It must be safe for concurrent use.
	Now func() time.Time
	// Certificate selects a certificate that clients should refuse. Default: a
	// good one.
	Certificate CertificateKind
	// HTTP1Only turns HTTP/2 off.
	HTTP1Only bool
}

func (c Config) withDefaults() Config {
	if c.Addr == "" {
		c.Addr = "127.0.0.1:0"
	}
	if c.Orgs == 0 {
		c.Orgs = 2
	}
	if c.JWTLifetime == 0 {
		c.JWTLifetime = time.Hour
	}
	if c.RefreshWindow == 0 {
		c.RefreshWindow = 7 * 24 * time.Hour
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

func (c Config) validate() error {
	switch {
	case c.Orgs < 0:
		return fmt.Errorf("%d orgs: want 1 or more", c.Orgs)
	case c.JWTLifetime < time.Second:
		return fmt.Errorf("JWT lifetime %v: want 1s or more", c.JWTLifetime)
	case c.RefreshWindow < 0:
		return fmt.Errorf("refresh window %v: want 0s or more", c.RefreshWindow)
	}
	return nil
}

// Emulator is a running Atlas. Its methods are safe for concurrent use.
type Emulator struct {
	url    string
	caPEM  []byte
	pool   *x509.CertPool
	server *http.Server
	client *http.Client

	atlas  *atlas
	faults faults
	gates  gates
	seen   counters

	cancel   context.CancelFunc // ends the context of every request
	closing  sync.Once
	serving  sync.WaitGroup // the accept loop and the open connections
	handlers handlers
}

// Start makes an Atlas and serves it on a loopback port until Close.
func Start(config Config) (*Emulator, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, err
	}
	certificate, caPEM, err := newCertificate(config.Certificate)
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	listener, err := listenLoopback(config.Addr)
	if err != nil {
		return nil, err
	}
	em := &Emulator{
		url:   "https://" + listener.Addr().String() + basePath,
		caPEM: caPEM,
		pool:  x509.NewCertPool(),
		atlas: newAtlas(config),
		seen:  newCounters(),
	}
	em.pool.AppendCertsFromPEM(caPEM)
	em.client = em.newClient()
	em.serve(listener, certificate, config.HTTP1Only)
	return em, nil
}

// MustStart is Start for tests and examples: it panics instead of returning an
// error.
func MustStart(config Config) *Emulator {
	em, err := Start(config)
	if err != nil {
		panic("emulator: " + err.Error())
	}
	return em
}

// listenLoopback listens on addr, which must name a loopback address: an
// Atlas whose credentials are printed has no business on a network.
func listenLoopback(addr string) (net.Listener, error) {
	tcp, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", addr, err)
	}
	if !tcp.IP.IsLoopback() {
		return nil, fmt.Errorf("address %q: not a loopback address, such as 127.0.0.1:0 or [::1]:0", addr)
	}
	return net.ListenTCP("tcp", tcp)
}

func (em *Emulator) serve(listener net.Listener, certificate tls.Certificate, http1Only bool) {
	ctx, cancel := context.WithCancel(context.Background())
	em.cancel = cancel
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(!http1Only)
	em.server = &http.Server{
		Handler:           http.HandlerFunc(em.handle),
		Protocols:         protocols,
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate}},
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // refused handshakes are the business of tests
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       withConnection,
		ConnState:         em.connectionChanged,
	}
	em.serving.Go(func() { _ = em.server.ServeTLS(listener, "", "") })
}

func (em *Emulator) connectionChanged(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		em.serving.Add(1)
		em.seen.connected()
	case http.StateClosed, http.StateHijacked:
		em.serving.Done()
	}
}

// Close ends every request, stalled ones too, closes every connection and
// returns when the last of them is gone. Closing twice is harmless.
func (em *Emulator) Close() {
	em.closing.Do(func() {
		em.client.CloseIdleConnections()
		em.cancel()
		_ = em.server.Close()
		em.serving.Wait()
		em.handlers.closeAndWait()
	})
}

// URL is the base URL, such as "https://127.0.0.1:49152/v1".
func (em *Emulator) URL() string { return em.url }

// ControlURL is the base URL of the control paths, such as
// "https://127.0.0.1:49152/_emulator".
func (em *Emulator) ControlURL() string {
	return strings.TrimSuffix(em.url, basePath) + controlPath
}

// CAPEM is the certificate of the authority to trust, in PEM.
func (em *Emulator) CAPEM() []byte { return bytes.Clone(em.caPEM) }

// CertPool holds the authority to trust, and no other.
func (em *Emulator) CertPool() *x509.CertPool { return em.pool.Clone() }

// Client is an HTTP client that trusts the emulator and follows no redirect.
// Close closes its idle connections.
func (em *Emulator) Client() *http.Client { return em.client }

func (em *Emulator) newClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: em.pool},
			ForceAttemptHTTP2: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// handlers counts the requests being handled. HTTP/2 handlers can outlive
// their connection, so waiting for connections is not enough.
type handlers struct {
	mu      sync.Mutex
	closed  bool           // guarded by mu; after it is set, running only falls
	running sync.WaitGroup // rises under mu only
}

// enter reports whether a request may still be handled. If so, leave must
// follow.
func (h *handlers) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.running.Add(1)
	return true
}

func (h *handlers) leave() { h.running.Done() }

func (h *handlers) closeAndWait() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.running.Wait()
}
