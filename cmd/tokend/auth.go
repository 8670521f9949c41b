package main

import (
	"crypto/x509"
	"errors"
	"io"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
)

// authFlags say who may call, and with which profile.
type authFlags struct {
	UserauthtokenFile, PolicyFile, OIDCCAFile, AuditFile string
}

func (f *authFlags) declare(flags flags) {
	logging := flags.about(aboutLogging)
	flags = flags.about(aboutCallers)
	flags.file(&f.UserauthtokenFile, "atlas-userauthtoken-file", "Hold an Atlas identity: the file with its userauthtoken. Every caller with a client certificate may use it, so it needs --tls-client-ca-file or --spiffe-socket; for more than that, write a policy.")
	flags.file(&f.PolicyFile, "policy-file", "Who may do what, as whom: YAML. A replaced file is picked up.")
	flags.file(&f.OIDCCAFile, "oidc-ca-file", "Authorities to trust for the policy's OIDC issuers beside the system's, PEM. A replaced file is picked up.")
	logging.file(&f.AuditFile, "audit-file", "Append one JSON record per call to this file; - is standard output; empty turns it off. SIGHUP opens it again. A request that is refused before it is a call, such as a 404 or 413, is in the log only.")
}

// defaultProfile is the profile that --atlas-userauthtoken-file makes.
const defaultProfile = "default"

// open reads the files. callers says how theirs is the connection.
func (f *authFlags) open(s *setup, client atlas.IdentityProvider, callers *tlsFlags, stdout io.Writer) {
	held := &profiles{client: client, log: s.Logger, files: s.files}
	s.profiles, s.Auth = held, auth.NewPassThrough()
	s.who = "Everybody with an Atlas JWT may call both methods; it is passed on, and Atlas decides.\n"
	s.close = append(s.close, func() { s.Auth.Close() }, held.Close)
	s.oidcCAs = s.authorities("--oidc-ca-file", "oidc_ca", f.OIDCCAFile, x509.SystemCertPool, nil)
	if f.OIDCCAFile != "" && f.PolicyFile == "" {
		s.fail("--oidc-ca-file", errors.New("without a --policy-file that has callers with OIDC tokens, it would be ignored"))
	}
	switch {
	case f.PolicyFile != "" && f.UserauthtokenFile != "":
		s.fail("--atlas-userauthtoken-file and --policy-file", errors.New("choose one; a policy names its userauthtoken files itself"))
	case f.PolicyFile != "":
		s.openPolicy(&policyFile{path: f.PolicyFile, callers: callers, oidcCA: f.OIDCCAFile != "", profiles: held})
	case f.UserauthtokenFile != "" && !callers.mutual():
		s.fail("--atlas-userauthtoken-file", errors.New("anybody could use this Atlas identity: give --tls-client-ca-file or --spiffe-socket, or a --policy-file that says who may"))
	case f.UserauthtokenFile != "":
		s.openDefault(f.UserauthtokenFile, held)
	}
	s.openAudit(f.AuditFile, stdout)
}

// openDefault makes the one profile of a service without a policy.
func (s *setup) openDefault(file string, held *profiles) {
	key := profileKey{defaultProfile, file}
	p, err := held.open(key)
	if err != nil {
		s.failSecret("--atlas-userauthtoken-file", file, err)
		return
	}
	s.who = "Every caller with a verified client certificate may call both methods, as profile " + defaultProfile + ".\n"
	s.authenticate(auth.Config{DefaultProfile: defaultProfile}, held, profileSet{key: p})
}

// authenticate has the profiles of the set used as cfg says.
func (s *setup) authenticate(cfg auth.Config, held *profiles, set profileSet) {
	cfg.Sources, cfg.Logger = set.sources(), s.Logger
	authenticator, err := auth.New(cfg)
	if err != nil {
		s.errs = append(s.errs, err)
		return
	}
	held.use(set)
	s.Auth = authenticator
}

// certificates says in words what is asked of callers before they call.
func (s *setup) certificates() string {
	switch {
	case s.TLS.ClientCAs == nil:
		return "Client certificates are not asked for.\n"
	case s.Auth.AllowsWithoutCertificate():
		return "Client certificates are asked for and verified, not demanded: the policy has rules for callers without one.\n"
	}
	return "Client certificates are demanded.\n"
}
