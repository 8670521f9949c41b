package server

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/listen"
	"github.com/ForstaLabs/ephemeral-token-service/internal/rest"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
)

// Config says what a Server listens on and whom it asks.
type Config struct {
	// GRPCAddr, HTTPAddr and AdminAddr are host:port, port 0 for any free one; empty turns that listener off. GRPCAddr
	// may be unix:/path. At least one of the first two is needed.
	GRPCAddr, HTTPAddr, AdminAddr string
	// GRPCSocket says who may connect where GRPCAddr is unix:/path. Default: the user that the server runs as.
	GRPCSocket listen.Socket
	// TLS is for the gRPC and REST listeners. The admin listener is always plaintext.
	TLS TLS
	// Docs adds the API's page, /docs, and its OpenAPI document, /openapi.json, to the REST listener.
	Docs bool
	// CORSOrigins are the origins, such as https://app.example.com, whose pages may call REST from a browser. Default: none but the
	// listener's own.
	CORSOrigins []string
	// Plaintext allows gRPC and REST without TLS on addresses that other machines can reach.
	Plaintext bool
	// Atlas does the work. If it has a method Check() error, that is for /readyz to tell.
	Atlas tokencache.Atlas
	// Cache says what of Atlas's answers is remembered, and where. Default: nothing is; calls are shared in any case. Its
	// CallTimeout, Registerer, Logger and Tracer are those of this Config.
	Cache tokencache.Config
	// Auth says who is let in, and as whom. Default: everybody with an Atlas JWT of their own, which is passed on.
	Auth *auth.Authenticator
	// Audit gets one record per call. Default: there is none.
	Audit *slog.Logger
	// DrainDelay is how long the server goes on serving once it is asked to stop and says that it is not ready, so that
	// whoever sends it calls has the time to notice. Default: not at all.
	DrainDelay time.Duration
	// DrainTimeout bounds how long calls in progress may take to finish after that. Default 25 s.
	DrainTimeout time.Duration
	// CallCeiling is the longest that a call may take, whatever its own deadline. It should be longer than Atlas's limit,
	// so that a slow Atlas is told from a slow caller. Default 30 s.
	CallCeiling time.Duration
	// MaxCalls bounds the calls in progress; further ones are refused with OVERLOADED. One caller may have half of them.
	// Default 4096.
	MaxCalls int64
	// CallerRate is how many calls one caller may begin in a second; further ones are refused with OVERLOADED. A caller is whom
	// package auth knows it to be from, else the credential. Default: no limit.
	CallerRate int
	// MaxConns is how many connections the gRPC and the HTTP listener may each have open; one address of another machine may have
	// half of them. Default: as many as the process's descriptors allow for, but no more than 10,000.
	MaxConns int
	// Logger gets one line per call (debug if it went well) and the server's own events. Default: nothing is logged.
	Logger *slog.Logger
	// Tracer makes spans of calls and of the calls to Atlas that they share; an Atlas client has its own, see [atlas.Config]. Default:
	// there are none.
	Tracer trace.TracerProvider
	// Propagator finds a call's parent span in its headers. Default: W3C Trace Context.
	Propagator propagation.TextMapPropagator
	// Metrics is what /metrics on the admin listener shows. New adds the server's own to it, so no two servers can share
	// one; whatever else the program counts may be registered before or after. Default: a new one.
	Metrics *prometheus.Registry
	// Debug adds to the admin listener what is for whoever looks into the program itself: /debug/pprof, and gRPC's channelz, which tells
	// what the process's gRPC servers and clients are connected to and how these connections fare. It then speaks HTTP/2 as well.
	Debug bool
	// ConnectionAge is how long a gRPC connection lasts before the client has to connect again. Default 30 min.
	ConnectionAge time.Duration
	// Tokens makes what answers the two RPCs. Default: the cache that Cache describes.
	Tokens func(tokencache.Atlas) Tokens
	// Listen binds an address. Default: net.Listen.
	Listen func(addr string) (net.Listener, error)

	descriptors       int           // that the process may have open; tests have too many
	readinessInterval time.Duration // between two looks at whether Atlas lets the service in
}

func (c *Config) setDefaults() {
	if c.DrainTimeout == 0 {
		c.DrainTimeout = 25 * time.Second
	}
	if c.CallCeiling == 0 {
		c.CallCeiling = 30 * time.Second
	}
	if c.MaxCalls == 0 {
		c.MaxCalls = 4096
	}
	if c.MaxConns == 0 {
		c.MaxConns = min(mostConns, c.connsThatFit())
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = prometheus.NewRegistry()
	}
	if c.readinessInterval == 0 {
		c.readinessInterval = time.Second
	}
	if c.ConnectionAge == 0 {
		c.ConnectionAge = 30 * time.Minute
	}
	if c.Audit == nil {
		c.Audit = slog.New(slog.DiscardHandler)
	}
	if c.Propagator == nil {
		c.Propagator = propagation.TraceContext{}
	}
	if c.Auth == nil {
		c.Auth = auth.NewPassThrough()
	}
}

// Mistakes in a Config that have a remedy outside it, for the caller of Validate to name.
var (
	ErrNoAtlas         = errors.New("no Atlas client is set")
	ErrExposed         = errors.New("other machines can reach it, and it has no TLS")
	ErrTLSIncomplete   = errors.New("client certificates are asked for, and TLS needs a certificate and a key")
	ErrDocsNowhere     = errors.New("the API's page is served on the HTTP listener, and that is off")
	ErrOriginNowhere   = errors.New("browsers call the HTTP listener, and that is off")
	ErrTLSAndPlaintext = errors.New("plaintext is asked for, and TLS is set up: choose one")
)

// ErrOriginNeedsCertificate is that CORS could let nobody in. A preflight comes without a client certificate, and so does what a page
// sends to another origin, unless it says otherwise, which browsers allow only where Access-Control-Allow-Credentials is sent.
var ErrOriginNeedsCertificate = errors.New("a client certificate is asked of everybody, and browsers show none on behalf of a page of another origin")

// Validate reports every mistake in c, joined: all that can be seen without binding an address.
func (c Config) Validate() error {
	var errs []error
	if c.GRPCAddr == "" && c.HTTPAddr == "" {
		errs = append(errs, errors.New("neither a gRPC nor an HTTP address is set: there would be nothing to call"))
	}
	if c.Atlas == nil {
		errs = append(errs, ErrNoAtlas)
	}
	errs = append(errs,
		listen.Validate("gRPC", c.GRPCAddr), listen.Validate("HTTP", c.HTTPAddr), listen.Validate("admin", c.AdminAddr))
	errs = append(errs, c.validateApart()...)
	switch {
	case c.TLS.Certificate == nil && c.TLS.ClientCAs != nil:
		errs = append(errs, ErrTLSIncomplete)
	case c.TLS.Certificate != nil && c.Plaintext:
		errs = append(errs, ErrTLSAndPlaintext)
	case c.TLS.Certificate == nil && !c.Plaintext:
		errs = append(errs, validateLocal("gRPC", c.GRPCAddr), validateLocal("HTTP", c.HTTPAddr))
	}
	errs = append(errs, c.validateBrowsers()...)
	errs = append(errs, c.Cache.Validate(), c.validateMaxConns())
	if c.DrainDelay < 0 || c.DrainTimeout < 0 || c.CallCeiling < 0 || c.MaxCalls < 0 || c.CallerRate < 0 || c.MaxConns < 0 || c.ConnectionAge < 0 {
		errs = append(errs, errors.New("a timeout or limit is negative"))
	}
	return errors.Join(errs...)
}

// validateBrowsers reports what is for browsers and would never reach one.
func (c Config) validateBrowsers() []error {
	var errs []error
	for _, origin := range c.CORSOrigins {
		errs = append(errs, rest.ValidateOrigin(origin))
	}
	if len(c.CORSOrigins) > 0 && c.TLS.ClientCAs != nil && (c.Auth == nil || !c.Auth.AllowsWithoutCertificate()) {
		errs = append(errs, ErrOriginNeedsCertificate)
	}
	if c.HTTPAddr == "" && c.Docs {
		errs = append(errs, ErrDocsNowhere)
	}
	if c.HTTPAddr == "" && len(c.CORSOrigins) > 0 {
		errs = append(errs, ErrOriginNowhere)
	}
	return errs
}

// validateApart reports each listener that would be on the address of one before it.
func (c Config) validateApart() []error {
	var errs []error
	listeners := []struct{ name, addr string }{{"gRPC", c.GRPCAddr}, {"HTTP", c.HTTPAddr}, {"admin", c.AdminAddr}}
	for i, second := range listeners {
		for _, first := range listeners[:i] {
			if listen.Overlap(first.addr, second.addr) {
				errs = append(errs, &listen.Error{Listener: second.name, Addr: second.addr, Err: fmt.Errorf("the %s listener has that port already (%s): choose another", first.name, first.addr)})
			}
		}
	}
	return errs
}

// tracer is nil if there is none.
func (c Config) tracer() trace.Tracer {
	if c.Tracer == nil {
		return nil
	}
	return c.Tracer.Tracer("github.com/ForstaLabs/ephemeral-token-service/server")
}

// validateLocal reports an address that other machines can reach.
func validateLocal(name, addr string) error {
	if addr == "" || listen.IsLocal(addr) {
		return nil
	}
	return &listen.Error{Listener: name, Addr: addr, Err: ErrExposed}
}
