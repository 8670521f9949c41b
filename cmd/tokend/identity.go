package main

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/server/auth"
)

// identityFlags say who may call, and as which Atlas user.
type identityFlags struct {
	UserauthtokenFile, PolicyFile, OIDCCAFile, AuditFile string

	trial bool // the settings are checked, and nothing is served
}

func (f *identityFlags) declare(flags flags) {
	flags.file(&f.UserauthtokenFile, "atlas-userauthtoken-file", "Hold an Atlas identity: the file with its userauthtoken. Every caller with a client certificate may use it, so it needs --tls-client-ca-file; for more than that, write a policy.")
	flags.file(&f.PolicyFile, "policy-file", "Who may do what, as whom: YAML. A replaced file is picked up.")
	flags.file(&f.OIDCCAFile, "oidc-ca-file", "Authorities to trust for the policy's OIDC issuers beside the system's, PEM. A replaced file is picked up.")
	flags.file(&f.AuditFile, "audit-file", "Append one JSON record per call to this file; - is standard output; empty turns it off. A request that is refused before it is a call, such as a 404 or 413, is in the log only.")
}

// defaultProfile is the profile that --atlas-userauthtoken-file makes.
const defaultProfile = "default"

// callers are who may call, as the flags say, and the work that keeps it up to date.
type callers struct {
	upkeep

	auth       *auth.Authenticator
	policy     *auth.Policy // as it was at start; nil without one
	profiles   *profiles
	hasDefault bool // the one profile is --atlas-userauthtoken-file's
	mutual     bool // callers are asked for client certificates
	audit      *slog.Logger
	close      []func()
}

// Close ends what calls need. Call it after run.
func (c *callers) Close() {
	for _, end := range c.close {
		end()
	}
}

// who says in words who may call.
func (c *callers) who() string {
	switch {
	case c.policy != nil:
		return c.policy.String()
	case c.hasDefault:
		return "Every caller with a verified client certificate may call both methods, as profile " + defaultProfile + ".\n"
	}
	return "Everybody with an Atlas JWT may call both methods; it is passed on, and Atlas decides.\n"
}

// certificates says in words what is asked of callers before they call.
func (c *callers) certificates() string {
	switch {
	case !c.mutual:
		return "Client certificates are not asked for.\n"
	case c.auth.AllowsWithoutCertificate():
		return "Client certificates are asked for and verified, not demanded: the policy has rules for callers without one.\n"
	}
	return "Client certificates are demanded.\n"
}

// explain says which rule a caller matches, or why it is no caller.
func (c *callers) explain(caller string) (string, error) {
	if c.policy == nil {
		return "There is no policy. " + strings.TrimSuffix(c.who(), "\n"), nil
	}
	return c.policy.Explain(caller)
}

// run re-reads the files until ctx ends.
func (c *callers) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, watch := range c.watch {
		group.Go(func() error { return watch(ctx) })
	}
	return group.Wait()
}

// open reads the files, and reports all validation errors. mutual is whether callers show client certificates.
func (f *identityFlags) open(client *atlas.Client, mutual bool, stdout io.Writer, log *slog.Logger) (*callers, []error) {
	c := &callers{auth: auth.PassThrough(), profiles: newProfiles(client, log), mutual: mutual}
	c.close = append(c.close, func() { c.auth.Close() }, c.profiles.Close)
	oidcCAs, err := c.openOIDCCAs(f.OIDCCAFile, log)
	errs := flatten(err)
	if f.OIDCCAFile != "" && f.PolicyFile == "" {
		errs = append(errs, errors.New("--oidc-ca-file: without a --policy-file that has callers with OIDC tokens, it would be ignored"))
	}
	switch {
	case f.PolicyFile != "" && f.UserauthtokenFile != "":
		errs = append(errs, errors.New("--atlas-userauthtoken-file and --policy-file: choose one; a policy names its userauthtoken files itself"))
	case f.PolicyFile != "":
		file := &policyFile{path: f.PolicyFile, mutual: mutual, oidcCA: f.OIDCCAFile != "", profiles: c.profiles}
		errs = append(errs, c.openPolicy(file, oidcCAs, log)...)
	case f.UserauthtokenFile != "" && !mutual:
		errs = append(errs, errors.New("--atlas-userauthtoken-file: anybody could use this Atlas identity: give --tls-client-ca-file, or a --policy-file that says who may"))
	case f.UserauthtokenFile != "":
		errs = append(errs, flatten(c.openDefault(f.UserauthtokenFile, log))...)
	}
	errs = append(errs, flatten(c.openAudit(f.AuditFile, f.trial, stdout, log))...)
	return c, errs
}

// openDefault makes the one profile of a service without a policy.
func (c *callers) openDefault(file string, log *slog.Logger) error {
	key := profileKey{defaultProfile, file}
	p, err := c.profiles.open(key)
	if err != nil {
		return secretFileError("atlas-userauthtoken-file", file, err)
	}
	set := profileSet{key: p}
	authenticator, err := auth.New(auth.Config{DefaultProfile: defaultProfile, Sources: set.sources(), Logger: log})
	if err != nil {
		return err
	}
	c.profiles.use(set)
	c.auth, c.hasDefault = authenticator, true
	return nil
}

// openOIDCCAs returns what has the authorities in a file; nil if there is no file, and the system's are believed.
func (c *callers) openOIDCCAs(file string, log *slog.Logger) (func() *x509.CertPool, error) {
	if file == "" {
		return nil, nil //nolint:nilnil // auth has a default of its own
	}
	roots, err := c.openCAs("oidc-ca-file", "oidc_ca", file, nil, log)
	if err != nil {
		return nil, err
	}
	return roots.Get, nil
}
