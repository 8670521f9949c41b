package server

import (
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

// Config says what a Server listens on and whom it asks.
type Config struct {
	// GRPCAddr, HTTPAddr and AdminAddr are host:port, port 0 for any free one; empty turns that listener off. GRPCAddr
	// may be unix:/path. At least one of the first two is needed.
	GRPCAddr, HTTPAddr, AdminAddr string
	// GRPCSocketMode is the mode of the socket file where GRPCAddr is unix:/path. Default 0600.
	GRPCSocketMode fs.FileMode
	// TLS is for the gRPC and REST listeners. The admin listener is always plaintext.
	TLS TLS
	// CheckFiles, if set, reports to /readyz what is wrong with certificates, secrets and other files that are replaced at run time.
	CheckFiles func() error
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
	// MaxCalls bounds the calls in progress; further ones are refused with OVERLOADED. One caller may have as many as
	// there are free ones. Default 4096.
	MaxCalls int64
	// CallerRate is how many calls one caller may begin in a second; further ones are refused with OVERLOADED. A caller is whom
	// package auth knows it to be from, else the credential. Default: no limit.
	CallerRate int
	// MaxConns is how many connections the gRPC and the HTTP listener may each have open; one address of another machine may have
	// half of them. Default: as many as fit the process's descriptors and memory, but no more than 10,000.
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
	// Version and Settings are shown on the status page of the admin listener. No setting may be a secret.
	Version  string
	Settings []status.Setting
	// Debug adds /debug/pprof to the admin listener.
	Debug bool
	// ConnectionAge is how long a gRPC connection lasts before the client has to connect again. Default 30 min.
	ConnectionAge time.Duration
	// Tokens makes what answers the two RPCs. Default: the cache that Cache describes.
	Tokens func(tokencache.Atlas) Tokens
	// Listen binds an address. Default: net.Listen.
	Listen func(addr string) (net.Listener, error)

	memoryLimit       int64         // in bytes, in place of GOMEMLIMIT; of tests
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
		c.MaxConns = c.defaultConns()
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

// Validate reports every mistake in c that can be seen without binding an address, each a *config.Error, joined.
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
	errs = append(errs, c.Cache.Validate(), config.Wrong("MaxConns", c.validateMaxConns()))
	if c.DrainDelay < 0 || c.DrainTimeout < 0 || c.CallCeiling < 0 || c.MaxCalls < 0 || c.CallerRate < 0 || c.MaxConns < 0 || c.ConnectionAge < 0 {
		wrong("Config", "a timeout or limit is negative")
	}
	return errors.Join(errs...)
}

// listener is one of the addresses of a Config.
type listener struct{ name, field, addr string }

func (c Config) listeners() []listener {
	return []listener{{"gRPC", "GRPCAddr", c.GRPCAddr}, {"HTTP", "HTTPAddr", c.HTTPAddr}, {adminListener, "AdminAddr", c.AdminAddr}}
}

// wrong returns what is wrong with the address as a *config.Error.
func (l listener) wrong(err error) error {
	if err == nil {
		return nil
	}
	return config.Wrong(l.field, fmt.Errorf("%s: %w", l.addr, err))
}

// validateBrowsers reports settings for browsers that would have no effect.
func (c Config) validateBrowsers() []error {
	var errs []error
	wrong := func(field, text string) { errs = append(errs, config.Wrong(field, errors.New(text))) }
	for _, origin := range c.CORSOrigins {
		errs = append(errs, config.Wrong("CORSOrigins", rest.ValidateOrigin(origin)))
	}
	// A preflight comes without a client certificate, and so do the requests of a page to another origin.
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

// tracer is nil if there is none.
func (c Config) tracer() trace.Tracer {
	if c.Tracer == nil {
		return nil
	}
	return c.Tracer.Tracer("github.com/ForstaLabs/ephemeral-token-service/server")
}
