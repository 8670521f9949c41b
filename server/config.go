package server

import (
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ForstaLabs/ephemeral-token-service/server/auth"
	"github.com/ForstaLabs/ephemeral-token-service/server/listen"
	"github.com/ForstaLabs/ephemeral-token-service/server/reload"
	"github.com/ForstaLabs/ephemeral-token-service/server/tokencache"
)

// Config says what a Server listens on and whom it asks.
type Config struct {
	// GRPCAddr, HTTPAddr and AdminAddr are host:port, port 0 for any free one; empty turns that listener off. GRPCAddr
	// may be unix:/path. At least one of the first two is needed.
	GRPCAddr, HTTPAddr, AdminAddr string
	// TLS is for the gRPC and REST listeners. The admin listener is always plaintext.
	TLS TLSFiles
	// Plaintext allows gRPC and REST without TLS on addresses that other machines can reach.
	Plaintext bool
	// Atlas does the work.
	Atlas tokencache.Atlas
	// Cache says what of Atlas's answers is remembered, and where. Default: nothing is; calls are shared in any case. Its
	// CallTimeout, Registerer and Logger are those of this Config.
	Cache tokencache.Config
	// Auth says who is let in, and as whom. Default: everybody with an Atlas JWT of their own, which is passed on.
	Auth *auth.Authenticator
	// Audit gets one record per call. Default: there is none.
	Audit *slog.Logger
	// DrainTimeout bounds how long calls in progress may take to finish once the server is asked to stop. Default 25 s.
	DrainTimeout time.Duration
	// CallCeiling is the longest that a call may take, whatever its own deadline. It should be longer than Atlas's limit,
	// so that a slow Atlas is told from a slow caller. Default 30 s.
	CallCeiling time.Duration
	// MaxCalls bounds the calls in progress; further ones are refused with OVERLOADED. Default 4096.
	MaxCalls int64
	// Logger gets one line per call (debug if it went well) and the server's own events. Default: nothing is logged.
	Logger *slog.Logger
	// Metrics is what /metrics on the admin listener shows. New adds the server's own to it, so no two servers can share
	// one; whatever else the program counts may be registered before or after. Default: a new one.
	Metrics *prometheus.Registry

	reloadInterval time.Duration                 // between two looks at the TLS files; tests have no second to wait
	connectionAge  time.Duration                 // after which gRPC clients have to connect again; tests have no half an hour to wait
	newTokens      func(tokencache.Atlas) Tokens // in place of a cache; of tests
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
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = prometheus.NewRegistry()
	}
	if c.reloadInterval == 0 {
		c.reloadInterval = reload.Interval
	}
	if c.connectionAge == 0 {
		c.connectionAge = 30 * time.Minute
	}
	if c.Audit == nil {
		c.Audit = slog.New(slog.DiscardHandler)
	}
	if c.Auth == nil {
		c.Auth = auth.PassThrough()
	}
}

// Mistakes in a Config that have a remedy outside it, for the caller of Validate to name.
var (
	ErrNoAtlas         = errors.New("no Atlas client is set")
	ErrExposed         = errors.New("other machines can reach it, and it has no TLS")
	ErrTLSIncomplete   = errors.New("TLS needs both a certificate file and a key file")
	ErrTLSAndPlaintext = errors.New("plaintext is asked for, and TLS files are given: choose one")
)

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
	if c.TLS.Enabled() {
		_, err := c.TLS.open(slog.New(slog.DiscardHandler)) // New is who uses them, and says what is odd about them
		errs = append(errs, err)
		if c.Plaintext {
			errs = append(errs, ErrTLSAndPlaintext)
		}
	} else if !c.Plaintext {
		errs = append(errs, validateLocal("gRPC", c.GRPCAddr), validateLocal("HTTP", c.HTTPAddr))
	}
	errs = append(errs, c.Cache.Validate())
	if c.DrainTimeout < 0 || c.CallCeiling < 0 || c.MaxCalls < 0 {
		errs = append(errs, errors.New("a timeout or limit is negative"))
	}
	return errors.Join(errs...)
}

// validateLocal reports an address that other machines can reach.
func validateLocal(name, addr string) error {
	if addr == "" || listen.IsLocal(addr) {
		return nil
	}
	return &listen.Error{Listener: name, Addr: addr, Err: ErrExposed}
}
