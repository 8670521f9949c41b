package setup

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"strings"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/config"
	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

// DefaultProfile is the profile that --atlas-userauthtoken-file makes.
const DefaultProfile = "default"

// openCallers reads the policy and the secrets, which define the callers and their identities.
func (s *Setup) openCallers() {
	set := &s.Settings
	s.profiles = &profiles{client: s.logins, log: s.log, files: s.files, warn: s.warn}
	s.Config.Auth = auth.NewPassThrough()
	s.close = append(s.close, func() { s.Config.Auth.Close() }, s.profiles.Close)
	s.OIDCAuthorities = s.authorities("--oidc-ca-file", "oidc_ca", set.OIDCCAFile, x509.SystemCertPool, nil)
	if set.OIDCCAFile != "" && set.PolicyFile == "" {
		s.wrong("--oidc-ca-file", errors.New("it would be ignored without a --policy-file that has callers with OIDC tokens"))
	}
	switch {
	case set.PolicyFile != "" && set.UserauthtokenFile != "":
		s.wrong("--atlas-userauthtoken-file and --policy-file", errors.New("choose one; a policy names its userauthtoken files itself"))
	case set.PolicyFile != "":
		s.openPolicy()
	case set.UserauthtokenFile != "" && !set.asksForCertificates():
		s.wrong("--atlas-userauthtoken-file", errors.New("any client could use this Atlas identity: set --tls-client-ca-file or --spiffe-socket, or a --policy-file that says who may"))
	case set.UserauthtokenFile != "":
		s.openDefault()
	}
}

// openDefault makes the one profile of a service without a policy.
func (s *Setup) openDefault() {
	file := s.Settings.UserauthtokenFile
	key := profileKey{DefaultProfile, file}
	p, err := s.profiles.open(key)
	if err != nil {
		s.unusableSecret("--atlas-userauthtoken-file", file, err)
		return
	}
	s.authenticate(auth.AnyCertificate(auth.Profile{Name: DefaultProfile, UserauthtokenFile: file}), profileSet{key: p})
}

// unusableSecret reports the file of a secret. A name without a slash is not repeated: it may be
// the secret itself.
func (s *Setup) unusableSecret(flag, file string, err error) {
	if errors.Is(err, fs.ErrNotExist) && !strings.Contains(file, "/") {
		s.wrong(flag, errors.New("there is no such file: give the path of a file with the secret in it, not the secret"))
		return
	}
	s.unusable(flag, err)
}

// authenticate lets callers use the profiles of the set as the policy says.
func (s *Setup) authenticate(policy *auth.Policy, set profileSet) {
	authenticator, err := auth.New(auth.Config{Policy: policy, Identities: set.identities(), RootCAs: s.OIDCAuthorities, Logger: s.log})
	if err != nil {
		s.add(err)
		return
	}
	s.profiles.use(set)
	s.Config.Auth = authenticator
}

// policyVersion is a policy and the profiles that it needs.
type policyVersion struct {
	policy   *auth.Policy
	profiles profileSet
}

// parsePolicy reads a version of the policy file and the secrets that it names. A start and a
// reload refuse the same.
func (s *Setup) parsePolicy(contents [][]byte) (policyVersion, error) {
	set := &s.Settings
	policy, err := auth.ParsePolicy(set.PolicyFile, contents[0])
	if err != nil {
		return policyVersion{}, err
	}
	var errs []error
	switch {
	case policy.NeedsCertificates() && !set.asksForCertificates():
		errs = append(errs, errors.New("it has callers with client certificates, but the server requests none: set --tls-client-ca-file or --spiffe-socket"))
	case policy.NeedsDNSNames() && set.SPIFFESocket != "":
		errs = append(errs, errors.New("it has callers by dns_san, and with --spiffe-socket callers are known by the SPIFFE ID of their certificate: give their spiffe_id"))
	}
	if set.OIDCCAFile != "" && len(policy.Issuers()) == 0 {
		errs = append(errs, errors.New("it has no callers with OIDC tokens, so --oidc-ca-file would be ignored"))
	}
	profiles, err := s.profiles.forPolicy(set.PolicyFile, policy)
	return policyVersion{policy, profiles}, errors.Join(append(errs, err)...)
}

// usePolicy applies a version.
func (s *Setup) usePolicy(v policyVersion) error {
	if err := s.Config.Auth.SetPolicy(v.policy, v.profiles.identities()); err != nil {
		return err
	}
	s.profiles.use(v.profiles)
	return nil
}

// openPolicy reads the policy and the secrets that it names. A new version of the file that is
// wrong, or that names a secret that cannot be read, leaves the last good one in force.
func (s *Setup) openPolicy() {
	log := s.log.With(slog.String("file", s.Settings.PolicyFile))
	get, err := reload.Watch(s.files, reload.Files[policyVersion]{
		Paths: []string{s.Settings.PolicyFile}, What: "policy", Parse: s.parsePolicy, Logger: log,
		OnChange: func(v policyVersion) {
			if err := s.usePolicy(v); err != nil {
				log.Error("the new policy cannot be used", slog.Any("cause", err))
				return
			}
			log.Info("policy replaced")
		},
	})
	for _, err := range config.Flatten(err) {
		// What the policy says is a setting; the files that it names may come later.
		_, unreadable := errors.AsType[*fs.PathError](err)
		s.Errors = append(s.Errors, &config.Error{Field: "--policy-file", Err: err, MayPass: unreadable || errors.As(err, new(secretError))})
	}
	if err != nil {
		return
	}
	first := get()
	s.Policy = first.policy
	s.authenticate(first.policy, first.profiles)
}
