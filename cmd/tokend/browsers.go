package main

import (
	"errors"
	"fmt"

	"github.com/ForstaLabs/ephemeral-token-service/internal/rest"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// browserFlags say what the REST listener has for browsers.
type browserFlags struct {
	Docs        bool
	CORSOrigins []string
}

// declare has the page as it is by default.
func (f *browserFlags) declare(flags flags, docs bool) {
	flags = flags.about(aboutBrowsers)
	flags.booleanAs(&f.Docs, docs, "docs", "Serve /docs, a page to read the API and try it, and /openapi.json with the REST API. The page asks no other host for anything.")
	flags.list(&f.CORSOrigins, "cors-origin", "ORIGIN", "Origins, such as https://app.example.com, whose pages may call the REST API with an authorization header (CORS). Repeat it, or separate them by commas. There are no wildcards.")
}

func (f *browserFlags) open(s *setup) {
	s.Docs, s.CORSOrigins = f.Docs, f.CORSOrigins
}

// nameBrowserFlag puts the flag's name in front of what is wrong with a setting for browsers, and says what to do.
func nameBrowserFlag(err error) error {
	switch {
	case errors.Is(err, rest.ErrOrigin):
		return fmt.Errorf("--cors-origin: %w", err)
	case errors.Is(err, server.ErrDocsNowhere):
		return fmt.Errorf("--docs: %w: give an --http-addr", err)
	case errors.Is(err, server.ErrOriginNowhere):
		return fmt.Errorf("--cors-origin: %w: give an --http-addr", err)
	case errors.Is(err, server.ErrOriginNeedsCertificate):
		return fmt.Errorf("--cors-origin: %w: give a --policy-file with a rule for oidc or atlas_jwt, or leave out --tls-client-ca-file or --spiffe-socket", err)
	}
	return err
}
