package main

import (
	"errors"
	"log/slog"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

// policyFile makes policies of the file's versions.
type policyFile struct {
	path     string
	callers  *tlsFlags
	oidcCA   bool // whether there is an authority for OIDC issuers
	profiles *profiles
}

// policyVersion is a policy and the profiles that it needs.
type policyVersion struct {
	policy   *auth.Policy
	profiles profileSet
}

// parse reads a version of the file and the secrets that it names. What serve would not start with, it does not switch to
// either.
func (f *policyFile) parse(contents [][]byte) (policyVersion, error) {
	policy, err := auth.ParsePolicy(f.path, contents[0])
	if err != nil {
		return policyVersion{}, err
	}
	var errs []error
	switch {
	case policy.NeedsCertificates() && !f.callers.mutual():
		errs = append(errs, errors.New("it has callers with client certificates, and none is asked for: give --tls-client-ca-file or --spiffe-socket"))
	case policy.NeedsDNSNames() && f.callers.SPIFFESocket != "":
		errs = append(errs, errors.New("it has callers by dns_san, and with --spiffe-socket each client certificate has a SPIFFE ID, by which it goes: give their spiffe_id"))
	}
	if f.oidcCA && !policy.AcceptsOIDC() {
		errs = append(errs, errors.New("it has no callers with OIDC tokens, so --oidc-ca-file would be ignored"))
	}
	set, err := f.profiles.forPolicy(f.path, policy)
	return policyVersion{policy, set}, errors.Join(append(errs, err)...)
}

// install puts a version in force.
func (f *policyFile) install(v policyVersion, a *auth.Authenticator) error {
	if err := a.SetPolicy(v.policy, v.profiles.sources()); err != nil {
		return err
	}
	f.profiles.use(v.profiles)
	return nil
}

// openPolicy reads the policy and the secrets that it names. A new version of the file that is wrong, or that names a secret
// which cannot be read, leaves the one in force.
func (s *setup) openPolicy(f *policyFile) {
	log := s.Logger.With(slog.String("file", f.path))
	get, err := reload.Watch(s.files, reload.Files[policyVersion]{
		Paths: []string{f.path}, What: "policy", Parse: f.parse, Logger: log,
		OnChange: func(v policyVersion) {
			if err := f.install(v, s.Auth); err != nil {
				log.Error("the new policy cannot be used", slog.Any("cause", err))
				return
			}
			log.Info("policy replaced")
		},
	})
	if err != nil {
		s.fail("--policy-file", err)
		return
	}
	first := get()
	s.policy, s.who = first.policy, first.policy.String()
	s.authenticate(auth.Config{Policy: first.policy, RootCAs: s.oidcCAs}, f.profiles, first.profiles)
}
