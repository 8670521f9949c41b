package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"time"

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

// identity is what the flags mean, and the work that keeps it up to date.
type identity struct {
	upkeep

	auth       *auth.Authenticator
	policy     *auth.Policy // as it was at start; nil without one
	profiles   *profiles
	hasDefault bool // the one profile is --atlas-userauthtoken-file's
	mutual     bool // callers are asked for client certificates
	audit      *slog.Logger
	close      []func()
}

// Close ends the identities. Call it after run.
func (id *identity) Close() {
	for _, end := range id.close {
		end()
	}
}

// who says in words who may call.
func (id *identity) who() string {
	switch {
	case id.policy != nil:
		return id.policy.String()
	case id.hasDefault:
		return "Every caller with a verified client certificate may call both methods, as profile " + defaultProfile + ".\n"
	}
	return "Everybody with an Atlas JWT may call both methods; it is passed on, and Atlas decides.\n"
}

// certificates says in words what is asked of callers before they call.
func (id *identity) certificates() string {
	switch {
	case !id.mutual:
		return "Client certificates are not asked for.\n"
	case id.auth.AllowsWithoutCertificate():
		return "Client certificates are asked for and verified, not demanded: the policy has rules for callers without one.\n"
	}
	return "Client certificates are demanded.\n"
}

// explain says which rule a caller matches, or why it is no caller.
func (id *identity) explain(caller string) (string, error) {
	if id.policy == nil {
		return "There is no policy. " + strings.TrimSuffix(id.who(), "\n"), nil
	}
	return id.policy.Explain(caller)
}

// run re-reads the files until ctx ends.
func (id *identity) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, watch := range id.watch {
		group.Go(func() error { return watch(ctx) })
	}
	return group.Wait()
}

// open reads the files, and reports all validation errors. mutual is whether callers show client certificates; no call takes
// longer than the ceiling.
func (f *identityFlags) open(client *atlas.Client, mutual bool, ceiling time.Duration, stdout io.Writer, log *slog.Logger) (*identity, []error) {
	id := &identity{auth: auth.PassThrough(), profiles: newProfiles(client, ceiling, log), mutual: mutual}
	id.close = append(id.close, id.profiles.Close)
	id.watch = append(id.watch, id.profiles.run)
	issuers, err := id.issuerClient(f.OIDCCAFile, log)
	errs := flatten(err)
	if f.OIDCCAFile != "" && f.PolicyFile == "" {
		errs = append(errs, errors.New("--oidc-ca-file: without a --policy-file that has callers with OIDC tokens, it would be ignored"))
	}
	switch {
	case f.PolicyFile != "" && f.UserauthtokenFile != "":
		errs = append(errs, errors.New("--atlas-userauthtoken-file and --policy-file: choose one; a policy names its userauthtoken files itself"))
	case f.PolicyFile != "":
		file := &policyFile{path: f.PolicyFile, mutual: mutual, oidcCA: f.OIDCCAFile != "", profiles: id.profiles}
		errs = append(errs, id.openPolicy(file, issuers, log)...)
	case f.UserauthtokenFile != "" && !mutual:
		errs = append(errs, errors.New("--atlas-userauthtoken-file: anybody could use this Atlas identity: give --tls-client-ca-file, or a --policy-file that says who may"))
	case f.UserauthtokenFile != "":
		errs = append(errs, flatten(id.openDefault(f.UserauthtokenFile, log))...)
	}
	errs = append(errs, flatten(id.openAudit(f.AuditFile, f.trial, stdout, log))...)
	return id, errs
}

// openDefault makes the one profile of a service without a policy.
func (id *identity) openDefault(file string, log *slog.Logger) error {
	p, err := id.profiles.open(defaultProfile, file)
	if err != nil {
		return secretFileError("atlas-userauthtoken-file", file, err)
	}
	id.profiles.add(profileSet{{name: defaultProfile}: p}) // as in a Grant without a policy
	authenticator, err := auth.New(auth.Config{DefaultProfile: defaultProfile, Logger: log})
	if err != nil {
		return err
	}
	id.auth, id.hasDefault = authenticator, true
	id.close = append(id.close, authenticator.Close)
	return nil
}
