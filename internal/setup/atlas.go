package setup

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/resilient"
	"github.com/ForstaLabs/ephemeral-token-service/internal/config"
)

// openAtlas makes the client, which follows the files as they change.
func (s *Setup) openAtlas() {
	set := &s.Settings
	var (
		roots func() *x509.CertPool
		cert  func() tls.Certificate
	)
	present := func() (pool *x509.CertPool, shown *tls.Certificate) {
		if roots != nil {
			pool = roots()
		}
		if cert != nil {
			c := cert()
			shown = &c
		}
		return pool, shown
	}
	replace := func() { s.Atlas.SetTLS(present()) }
	roots = s.authorities("--atlas-ca-file", "atlas_ca", set.AtlasCAFile, x509.SystemCertPool, replace)
	if set.AtlasCertFile != "" || set.AtlasKeyFile != "" {
		cert = s.certificate("atlas", "atlas_client", set.AtlasCertFile, set.AtlasKeyFile, nil, replace)
	}
	pool, shown := present()
	s.checkAboveZero("--atlas-timeout", set.AtlasTimeout)
	s.add(config.CheckDuration("--atlas-timeout", set.AtlasTimeout))
	s.add(config.CheckCount("--atlas-max-calls", int64(set.AtlasMaxCalls)))
	// A login between two tries fits, or a slow Atlas would be taken for a slow caller.
	s.Config.CallCeiling = max(30*time.Second, min(3*set.AtlasTimeout, config.MaxDuration))
	if err := s.newAtlas(atlas.Config{BaseURL: set.AtlasURL, Timeout: max(set.AtlasTimeout, 0), RootCAs: pool, Certificate: shown}); err != nil {
		s.wrong("--atlas-url", err)
		return
	}
	switch path := strings.TrimRight(set.AtlasURL, "/"); {
	case strings.HasSuffix(path, "/ephemeral-token"):
		s.wrong("--atlas-url", errors.New("it is Atlas's base URL, to which tokend adds the path: leave out /ephemeral-token at its end"))
	case !strings.HasSuffix(path, "/v1"):
		s.warn(Warning{"--atlas-url", "Atlas's base URL usually ends in /v1"})
	}
}

// newAtlas makes a client that makes one attempt per call, and the resilient one in front of it.
func (s *Setup) newAtlas(cfg atlas.Config) error {
	resilience := resilient.Config{MaxCalls: max(s.Settings.AtlasMaxCalls, 0), Registerer: s.Config.Metrics, OnChange: func(cause error) {
		if cause == nil {
			s.log.Info("circuit breaker closed: Atlas answers again")
			return
		}
		s.log.Warn("circuit breaker open: failing fast, probing Atlas once a second", slog.String("cause", cause.Error()))
	}}
	cfg.UserAgent, cfg.MaxConns = s.opts.Build.userAgent(), resilience.Conns()
	cfg.Tracer, cfg.Propagator = s.Config.Tracer, s.Config.Propagator
	client, err := atlas.New(cfg)
	if err != nil {
		return err
	}
	before, err := resilient.New(client, resilience)
	if err != nil {
		return err
	}
	s.close = append(s.close, before.Close)
	s.Atlas, s.Config.Atlas, s.logins = client, before, before
	return nil
}

// ProxySetting is the name under which a wrong proxy is reported.
const ProxySetting = "HTTPS_PROXY"

// proxySchemes are those that net/http connects to.
var proxySchemes = []string{"http", "https", "socks5", "socks5h"}

// checkProxy reports a proxy that net/http would silently ignore, calling Atlas without it. The
// value may have a password in it, so it is not repeated.
func (s *Setup) checkProxy() {
	for _, name := range []string{ProxySetting, strings.ToLower(ProxySetting)} {
		value := config.Lookup(s.opts.Environ, name)
		if value == "" {
			continue
		}
		if !strings.Contains(value, "://") {
			value = "http://" + value // net/http takes host:port as well
		}
		if proxy, err := url.Parse(value); err != nil || proxy.Host == "" || !slices.Contains(proxySchemes, proxy.Scheme) {
			s.Errors = append(s.Errors, &config.Error{Field: ProxySetting, Err: fmt.Errorf("it is not the URL of a proxy: set one such as http://proxy.internal:3128, or unset it")})
		}
	}
}
