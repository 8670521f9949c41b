package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"

	"github.com/ForstaLabs/ephemeral-token-service/server/auth"
	"github.com/ForstaLabs/ephemeral-token-service/server/reload"
)

// policyFile makes policies of the file's versions.
type policyFile struct {
	path     string
	mutual   bool // whether callers are asked for client certificates
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
	if policy.NeedsCertificates() && !f.mutual {
		errs = append(errs, errors.New("it has callers with client certificates, and none is asked for: give --tls-client-ca-file"))
	}
	if f.oidcCA && len(policy.Issuers()) == 0 {
		errs = append(errs, errors.New("it has no callers with OIDC tokens, so --oidc-ca-file would be ignored"))
	}
	set, unreadable := f.profiles.forPolicy(f.path, policy)
	for _, err := range unreadable {
		// A secret may come after the policy that names it.
		errs = append(errs, reload.Retry(err))
	}
	return policyVersion{policy, set}, errors.Join(errs...)
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
func (c *callers) openPolicy(f *policyFile, oidcCAs func() *x509.CertPool, log *slog.Logger) []error {
	fileLog := log.With(slog.String("file", f.path))
	policy, err := reload.New([]string{f.path}, f.parse, func(v policyVersion) {
		if err := f.install(v, c.auth); err != nil {
			fileLog.Error("the new policy cannot be used", slog.String("cause", err.Error()))
			return
		}
		fileLog.Info("policy replaced")
	}, reload.Report(fileLog, "policy"))
	if err != nil {
		var errs []error
		for _, err := range flatten(err) {
			errs = append(errs, fmt.Errorf("--policy-file: %w", err))
		}
		return errs
	}
	first := policy.Get()
	authenticator, err := auth.New(auth.Config{Policy: first.policy, Sources: first.profiles.sources(), RootCAs: oidcCAs, Logger: log})
	if err != nil {
		return []error{err}
	}
	f.profiles.use(first.profiles)
	c.auth, c.policy = authenticator, first.policy
	c.keep(policy)
	return nil
}
