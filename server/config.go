package server

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/config"
	"github.com/ForstaLabs/ephemeral-token-service/internal/listen"
	"github.com/ForstaLabs/ephemeral-token-service/internal/rest"
	"github.com/ForstaLabs/ephemeral-token-service/internal/status"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
)

// Config configures a Server.
type Config struct {
	// GRPCAddr, HTTPAddr and AdminAddr are host:port; port 0 picks a free port, and an empty
	// address turns the listener off. GRPCAddr may be unix:/path. At least one of the first two is
	// needed.
	GRPCAddr, HTTPAddr, AdminAddr string
	// GRPCSocketMode is the mode of the socket file where GRPCAddr is unix:/path. Default 0600.
	GRPCSocketMode fs.FileMode
	// TLS configures the gRPC and REST listeners. The admin listener is always plaintext.
	TLS TLS
	// CheckFiles, if set, returns what is wrong with certificates, secrets and other files that are
	// reloaded at run time. /readyz shows it.
	CheckFiles func() error
	// Docs serves the API page at /docs and the OpenAPI document at /openapi.json on the REST
	// listener.
	Docs bool
	// CORSOrigins are the origins, such as https://app.example.com, whose pages may call REST from
	// a browser. Default: only the listener's own.
	CORSOrigins []string
	// Plaintext allows gRPC and REST without TLS on addresses that other machines can reach.
	Plaintext bool
	// Atlas creates and deletes tokens. If it has a method Check() error, /readyz shows its result.
	Atlas tokencache.Atlas
	// Cache configures the token cache. By default nothing is cached; concurrent calls are shared
	// in any case. Its CallTimeout, Registerer, Logger and Tracer are taken from this Config.
	Cache tokencache.Config
	// Auth authenticates callers and picks their Atlas identity. Default: callers bring an Atlas
	// JWT, which is passed on.
	Auth *auth.Authenticator
	// Audit gets one record per call. Default: no audit log.
	Audit *slog.Logger
	// DrainDelay is how long the server keeps serving after it has reported that it is not ready,
	// so that load balancers notice before it stops. Default 0.
	DrainDelay time.Duration
	// DrainTimeout bounds how long calls in progress may take to finish after DrainDelay. Default
	// 25 s.
	DrainTimeout time.Duration
	// CallCeiling is the longest that a call may take, whatever its own deadline. It should exceed
	// the timeout of Atlas calls, so that a slow Atlas can be told from a slow caller. Default 30
	// s.
	CallCeiling time.Duration
	// MaxCalls bounds the calls in progress; further ones are refused with OVERLOADED. One caller
	// may have as many in progress as there are places left. Default 4096.
	MaxCalls int64
	// CallerRate is how many calls to Atlas one caller may cause per second; cached and shared
	// calls do not count. Further calls are refused with OVERLOADED. A caller is identified by
	// package auth, or else by its credential. Default: no limit.
	CallerRate int
	// MaxConns is how many connections the gRPC and the HTTP listener may each have open; one
	// address of another machine may have half of them. Default: as many as the process's
	// descriptors and memory allow, at most 10,000.
	MaxConns int
	// Logger gets one line per call (at debug level if it succeeded) and the server's own events.
	// Default: no log.
	Logger *slog.Logger
	// Tracer makes spans of calls and of the Atlas calls that they share; an Atlas client has its
	// own, see [atlas.Config]. Default: no tracing.
	Tracer trace.TracerProvider
	// Propagator finds a call's parent span in its headers. Default: W3C Trace Context.
	Propagator propagation.TextMapPropagator
	// Metrics is the registry behind /metrics on the admin listener. New registers the server's
	// metrics, so two servers cannot share one. Default: a new registry.
	Metrics *prometheus.Registry
	// Version and Settings are shown on the status page of the admin listener. Settings must not
	// contain secrets.
	Version  string
	Settings []status.Setting
	// Debug adds /debug/pprof to the admin listener.
	Debug bool
	// ConnectionAge is how old a connection may get before the client has to reconnect. Default 30
	// min.
	ConnectionAge time.Duration
	// Tokens makes the implementation of the two RPCs. Default: the cache configured by Cache.
	Tokens func(tokencache.Atlas) Tokens
	// Listen binds an address. Default: net.Listen.
	Listen func(addr string) (net.Listener, error)

	memoryLimit       int64         // in bytes; tests set it in place of GOMEMLIMIT
	descriptors       int           // file descriptor limit; tests set it
	readinessInterval time.Duration // time between updates of the readiness state
}

func (c *Config) setDefaults() {
	c.DrainTimeout = cmp.Or(c.DrainTimeout, 25*time.Second)
	c.CallCeiling = cmp.Or(c.CallCeiling, 30*time.Second)
	c.MaxCalls = cmp.Or(c.MaxCalls, 4096)
	c.MaxConns = cmp.Or(c.MaxConns, c.defaultConns())
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	c.Metrics = cmp.Or(c.Metrics, prometheus.NewRegistry())
	c.readinessInterval = cmp.Or(c.readinessInterval, time.Second)
	c.ConnectionAge = cmp.Or(c.ConnectionAge, 30*time.Minute)
	c.Audit = cmp.Or(c.Audit, slog.New(slog.DiscardHandler))
	c.Auth = cmp.Or(c.Auth, auth.NewPassThrough())
}

// Validate returns every mistake in c that can be found without binding an address, each a
// *config.Error, joined.
func (c Config) Validate() error {
	var errs []error
	wrong := func(field, text string) { errs = append(errs, config.Wrong(field, errors.New(text))) }
	if c.GRPCAddr == "" && c.HTTPAddr == "" {
		wrong("GRPCAddr", "neither a gRPC nor an HTTP address is set: there would be nothing to call")
	}
	if c.Atlas == nil {
		wrong("Atlas", "no Atlas client is set")
	}
	for _, l := range c.listeners() {
		errs = append(errs, l.wrong(listen.Validate(l.addr, l.field == "GRPCAddr")))
	}
	switch {
	case c.TLS.Certificate == nil && c.TLS.ClientCAs != nil:
		wrong("TLS", "client CA set without a server certificate and key")
	case c.TLS.Certificate != nil && c.Plaintext:
		wrong("Plaintext", "it contradicts TLS, which is set up: choose one")
	case c.TLS.Certificate == nil && !c.Plaintext:
		for _, l := range c.listeners()[:2] { // the admin listener is always plaintext
			if l.addr != "" && !listen.IsLocal(l.addr) {
				errs = append(errs, l.wrong(errors.New("other machines can reach it without TLS: set a certificate and its key, or allow plaintext if a proxy in front encrypts")))
			}
		}
	}
	errs = append(errs, c.validateBrowsers()...)
	return errors.Join(append(errs,
		c.Cache.Validate(),
		config.CheckDuration("DrainDelay", c.DrainDelay),
		config.CheckDuration("DrainTimeout", c.DrainTimeout),
		config.CheckDuration("CallCeiling", c.CallCeiling),
		config.CheckDuration("ConnectionAge", c.ConnectionAge),
		config.CheckCount("MaxCalls", c.MaxCalls),
		config.CheckCount("CallerRate", int64(c.CallerRate)),
		config.CheckCount("MaxConns", int64(c.MaxConns)),
		config.Wrong("MaxConns", c.validateMaxConns()),
	)...)
}

// listener is the address of one listener.
type listener struct{ name, field, addr string }

func (c Config) listeners() []listener {
	return []listener{{"gRPC", "GRPCAddr", c.GRPCAddr}, {"HTTP", "HTTPAddr", c.HTTPAddr}, {adminListener, "AdminAddr", c.AdminAddr}}
}

// wrong returns err as a *config.Error about the address.
func (l listener) wrong(err error) error {
	if err == nil {
		return nil
	}
	return config.Wrong(l.field, fmt.Errorf("%s: %w", l.addr, err))
}

// validateBrowsers returns mistakes in the settings for browsers, including those without effect.
func (c Config) validateBrowsers() []error {
	var errs []error
	wrong := func(field, text string) { errs = append(errs, config.Wrong(field, errors.New(text))) }
	for _, origin := range c.CORSOrigins {
		errs = append(errs, config.Wrong("CORSOrigins", rest.ValidateOrigin(origin)))
	}
	// Browsers send neither preflights nor cross-origin requests with a client certificate.
	if len(c.CORSOrigins) > 0 && c.TLS.ClientCAs != nil && (c.Auth == nil || !c.Auth.AllowsWithoutCertificate()) {
		wrong("CORSOrigins", "every caller needs a client certificate, and browsers send none for a page of another origin: add a policy with a rule for oidc or atlas_jwt, or drop the client CA")
	}
	if c.HTTPAddr == "" && c.Docs {
		wrong("Docs", "the API page is served on the HTTP listener, which is off")
	}
	if c.HTTPAddr == "" && len(c.CORSOrigins) > 0 {
		wrong("CORSOrigins", "browsers call the HTTP listener, which is off")
	}
	return errs
}

// tracer returns nil if tracing is off.
func (c Config) tracer() trace.Tracer {
	if c.Tracer == nil {
		return nil
	}
	return c.Tracer.Tracer("github.com/ForstaLabs/ephemeral-token-service/server")
}
