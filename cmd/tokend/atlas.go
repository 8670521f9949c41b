package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/resilient"
)

// open makes the client, and has it go by the files as they are at each time. It returns nil if the flags are of no use.
func (f *atlasFlags) open(s *setup) atlas.IdentityProvider {
	var (
		client *atlas.Client
		roots  func() *x509.CertPool
		cert   func() tls.Certificate
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
	replace := func() { client.SetTLS(present()) }
	roots = s.authorities("--atlas-ca-file", "atlas_ca", f.CAFile, x509.SystemCertPool, replace)
	if f.ClientCertFile != "" || f.ClientKeyFile != "" {
		cert = s.certificate("atlas", "atlas_client", f.ClientCertFile, f.ClientKeyFile, nil, replace)
	}
	pool, shown := present()
	client, before, err := s.newAtlas(f.MaxCalls, atlas.Config{BaseURL: f.URL, Timeout: f.Timeout, RootCAs: pool, Certificate: shown})
	for _, err := range flatten(err) {
		if strings.HasPrefix(err.Error(), "HTTPS_PROXY") { // the one thing that is not about the URL
			s.errs = append(s.errs, err)
		} else {
			s.fail("--atlas-url", err)
		}
	}
	if client != nil {
		s.Atlas, s.atlas = before, client
		f.checkPath(s)
	}
	// A login between two tries fits, or a slow Atlas would be taken for a slow caller.
	s.CallCeiling = f.ceiling()
	return before
}

// newAtlas returns a client that makes one attempt per call, and the one in front of it, which is the one to call.
func (s *setup) newAtlas(maxCalls int, cfg atlas.Config) (*atlas.Client, *resilient.Client, error) {
	resilience := resilient.Config{MaxCalls: maxCalls, Registerer: s.Metrics, OnChange: func(cause error) {
		if cause == nil {
			s.Logger.Info("circuit breaker closed: Atlas answers again")
			return
		}
		s.Logger.Warn("circuit breaker open: failing fast, probing Atlas once a second", slog.String("cause", cause.Error()))
	}}
	cfg.UserAgent, cfg.MaxConns = userAgent(), resilience.Conns()
	cfg.Tracer, cfg.Propagator = s.Tracer, s.Propagator
	client, err := atlas.New(cfg)
	if err != nil {
		return nil, nil, err
	}
	before, err := resilient.New(client, resilience)
	if err != nil {
		return nil, nil, err
	}
	s.close = append(s.close, before.Close)
	return client, before, nil
}

// checkPath looks at the one part of the URL that somebody gets wrong who has copied it.
func (f *atlasFlags) checkPath(s *setup) {
	switch path := strings.TrimRight(f.URL, "/"); {
	case strings.HasSuffix(path, "/ephemeral-token"):
		s.fail("--atlas-url", errors.New("it is Atlas's base URL, to which tokend adds the path: leave out /ephemeral-token at its end"))
	case !strings.HasSuffix(path, "/v1"):
		s.Logger.Warn("Atlas's base URL usually ends in /v1", slog.String("of", "--atlas-url"), slog.String("url", f.URL))
	}
}
