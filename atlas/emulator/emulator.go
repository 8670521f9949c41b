// Package emulator is a small working Atlas over HTTPS, for tests and for trying things out, in the
// manner of net/http/httptest. Nothing in it is real: its orgs, keys, tokens and certificate are
// made by Start and forgotten by Close.
//
// It shares no code and no wire types with the client it is used to test, so a mistake made in one
// cannot hide in the other. It listens on loopback only.
//
//	em, err := emulator.Start(emulator.Config{})
//	defer em.Close()
//	base, roots, jwt := em.URL(), em.CertPool(), em.Org(0).JWT()
//
// # What it answers
//
// Below the base path /v1, in the shapes of Django REST framework:
//
//	POST   /login/              {"userauthtoken"} → 200 {"token", "user"}
//	POST   /api-token-refresh/  {"token"}         → 200 {"token"}
//	POST   /ephemeral-token     Authorization: JWT … → 201 {"token"}
//	DELETE /ephemeral-token     Authorization: JWT … → 204
//
// A path that differs from these by its last slash is answered with a 301 to the right one, another
// path with 404, another method with 405. A JWT carries a "jti", which Atlas does not document, so
// that two of the same second differ.
//
// # Faults and records
//
// [Emulator.Inject] takes a [Fault]: latency, another status, a broken body, a dropped connection.
// [Emulator.Hold] and [Emulator.HoldAnswer] stop requests at a [Gate] until the test lets them go,
// which replaces sleeping.
//
// [Emulator.Calls], [Emulator.Counters] and [Emulator.Requests] return what came in and what went
// out; [Emulator.Tokens] has when each ephemeral token was minted and deleted. An answer is counted
// before the client can see it.
//
// # Control over HTTPS
//
// Users of the program reach the same things under /_emulator, on the same port, with JSON. These
// requests are not counted and meet no fault.
//
//	GET    /_emulator/counters     Counters
//	GET    /_emulator/requests     the latest requests, oldest first
//	GET    /_emulator/tokens       the ephemeral tokens ever minted
//	POST   /_emulator/faults       a Fault → 201 {"id"}
//	DELETE /_emulator/faults       remove them all → 204
//	DELETE /_emulator/faults/{id}  remove one → 204
//
// A Fault in JSON has "operation" for On, the other fields of the Go type in snake case, and
// durations as text. What is left out has its zero value:
//
//	{"operation": "create", "times": 1, "status": 429, "header": {"Retry-After": ["7"]}}
//	{"operation": "delete", "drop": "reset", "after_effect": true}
//	{"delay": "250ms"}
package emulator

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Config configures an Emulator. The zero value is ready to use.
type Config struct {
	// Addr is the loopback host:port to listen on. Default "127.0.0.1:0".
	Addr string
	// Listener is what to listen on in place of Addr, such as one in memory.
	Listener net.Listener
	// Orgs is the number of orgs, each with one bot user. Default 2.
	Orgs int
	// Seed makes the key that signs JWTs and the ids of the orgs, so that JWTs are good in the next
	// run too. Anyone who knows it can sign them. Default: random.
	Seed string
	// JWTLifetime is the time from a JWT's issue to its exp. Default 1 hour.
	JWTLifetime time.Duration
	// RefreshWindow is how long after the login (orig_iat) a JWT can still be refreshed. Default 7
	// days.
	RefreshWindow time.Duration
	// Now is the clock for JWTs and for the Date header; certificates and faults use the real one.
	// Default time.Now. It must be safe for concurrent use.
	Now func() time.Time
	// Certificate selects a certificate that clients should refuse. Default: a good one.
	Certificate CertificateKind
	// HTTP1Only turns HTTP/2 off.
	HTTP1Only bool
}

func (c Config) withDefaults() Config {
	c.Addr = cmp.Or(c.Addr, "127.0.0.1:0")
	c.Orgs = cmp.Or(c.Orgs, 2)
	c.JWTLifetime = cmp.Or(c.JWTLifetime, time.Hour)
	c.RefreshWindow = cmp.Or(c.RefreshWindow, 7*24*time.Hour)
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// Emulator is a running Atlas. Its methods are safe for concurrent use.
type Emulator struct {
	server  *http.Server
	serving sync.WaitGroup // the listener and each connection
	addr    net.Addr
	caPEM   []byte

	atlas  *atlas
	faults faults
	gates  gates
	seen   counters

	cancel   context.CancelFunc // ends the context of every request
	handling sync.RWMutex       // read-locked by every request
	closed   bool               // guarded by handling
}

// Start makes an Atlas and serves it on a loopback port until Close.
func Start(config Config) (*Emulator, error) {
	config = config.withDefaults()
	certificate, caPEM, err := newCertificate(config.Certificate)
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	listener := config.Listener
	if listener == nil {
		if listener, err = listenLoopback(config.Addr); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	em := &Emulator{addr: listener.Addr(), caPEM: caPEM, atlas: newAtlas(config), seen: newCounters(), cancel: cancel}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(!config.HTTP1Only)
	em.server = &http.Server{
		Handler:           http.HandlerFunc(em.handle),
		Protocols:         protocols,
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate}},
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // tests cause refused handshakes
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connectionKey{}, c)
		},
		ConnState: func(conn net.Conn, state http.ConnState) { em.count(ctx, conn, state) },
	}
	em.serving.Go(func() { _ = em.server.ServeTLS(listener, "", "") }) // until Close
	return em, nil
}

// listenLoopback listens on addr, which must be a loopback address: the credentials are printed, so
// no other machine may reach them.
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

// count makes Close wait for a connection, from its first state to its last. It closes one that
// arrives while Close runs, which Close does not see.
func (em *Emulator) count(ctx context.Context, conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		em.serving.Add(1)
		if ctx.Err() != nil {
			_ = conn.Close()
		}
	case http.StateClosed, http.StateHijacked:
		em.serving.Done()
	}
}

// Close ends every request, even a stalled one, closes every connection and waits for both. It may
// be called twice.
func (em *Emulator) Close() {
	em.cancel()
	_ = em.server.Close()
	em.serving.Wait()
	em.handling.Lock() // waits for requests of HTTP/2, which can outlive their connection
	defer em.handling.Unlock()
	em.closed = true
}

// URL returns the base URL, such as "https://127.0.0.1:49152/v1".
func (em *Emulator) URL() string { return "https://" + em.addr.String() + basePath }

// CAPEM returns the certificate to trust, in PEM.
func (em *Emulator) CAPEM() []byte { return bytes.Clone(em.caPEM) }

// CertPool returns a pool of the certificate to trust.
func (em *Emulator) CertPool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(em.caPEM)
	return pool
}

// CertificateKind selects the server's certificate.
type CertificateKind string

// The certificates. All but the first are for clients to refuse.
const (
	GoodCertificate       CertificateKind = ""            // for localhost, 127.0.0.1 and ::1
	ExpiredCertificate    CertificateKind = "expired"     // good until an hour ago
	OtherHostCertificate  CertificateKind = "other-host"  // for atlas.invalid only
	SelfSignedCertificate CertificateKind = "self-signed" // valid, but not the one in CAPEM
)

// newCertificate makes a server certificate, and what to trust. That is the certificate itself: it
// is not an authority, so trusting it by mistake costs little.
func newCertificate(kind CertificateKind) (server tls.Certificate, trusted []byte, err error) {
	now := time.Now()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Atlas emulator (not real)"},
		NotBefore:             now.Add(-time.Hour), // for a client whose clock is late
		NotAfter:              now.Add(7 * 24 * time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		DNSNames:              []string{"localhost"},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	switch kind {
	case ExpiredCertificate:
		template.NotBefore, template.NotAfter = now.Add(-2*time.Hour), now.Add(-time.Hour)
	case OtherHostCertificate:
		template.DNSNames, template.IPAddresses = []string{"atlas.invalid"}, nil
	}
	server, err = selfSigned(template)
	other := server
	if err == nil && kind == SelfSignedCertificate {
		other, err = selfSigned(template)
	}
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	return server, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Certificate[0]}), nil
}

func selfSigned(template *x509.Certificate) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key) // draws a serial number
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
