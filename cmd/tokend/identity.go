package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/server/auth"
	"github.com/ForstaLabs/ephemeral-token-service/server/reload"
)

// identityFlags say who may call, and as which Atlas user.
type identityFlags struct {
	UserauthtokenFile string `name:"atlas-userauthtoken-file" placeholder:"FILE" help:"Hold an Atlas identity: the file with its userauthtoken. Every caller with a client certificate may use it, so it needs --tls-client-ca-file; for more than that, write a policy."`
	PolicyFile        string `name:"policy-file" placeholder:"FILE" help:"Who may do what, as whom: YAML. A replaced file is picked up."`
	AuditFile         string `name:"audit-file" placeholder:"FILE" help:"Append one JSON record per call to this file; - is standard output; empty turns it off."`
}

// defaultProfile is the profile that --atlas-userauthtoken-file makes.
const defaultProfile = "default"

// identity is what the flags mean, and the work that keeps it up to date.
type identity struct {
	auth       *auth.Authenticator
	policy     *auth.Policy // as it was at start; nil without one
	identities map[string]*atlas.TokenSource
	audit      *slog.Logger
	watch      []func(context.Context) error
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
	case len(id.identities) > 0:
		return "Every caller with a verified client certificate may call both methods, as profile " + defaultProfile + ".\n"
	}
	return "Everybody with an Atlas JWT may call both methods; it is passed on, and Atlas decides.\n"
}

// explain says which rule a caller matches.
func (id *identity) explain(caller string) string {
	if id.policy == nil {
		return "There is no policy. " + strings.TrimSuffix(id.who(), "\n")
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

// open reads the files, and reports every mistake in them. mutual is whether callers show client certificates.
func (f identityFlags) open(client *atlas.Client, mutual bool, stdout io.Writer, log *slog.Logger) (*identity, []error) {
	id := &identity{identities: map[string]*atlas.TokenSource{}, auth: auth.PassThrough()}
	var errs []error
	switch {
	case f.PolicyFile != "" && f.UserauthtokenFile != "":
		errs = append(errs, errors.New("--atlas-userauthtoken-file and --policy-file: choose one; a policy names its userauthtoken files itself"))
	case f.PolicyFile != "":
		errs = append(errs, id.openPolicy(f.PolicyFile, client, mutual, log)...)
	case f.UserauthtokenFile != "" && !mutual:
		errs = append(errs, errors.New("--atlas-userauthtoken-file: anybody could use this Atlas identity: give --tls-client-ca-file, or a --policy-file that says who may"))
	case f.UserauthtokenFile != "":
		if err := id.addProfile(defaultProfile, f.UserauthtokenFile, client, log); err != nil {
			errs = append(errs, fmt.Errorf("--atlas-userauthtoken-file: %w", err))
		}
		authenticator, err := auth.New(auth.Config{DefaultProfile: defaultProfile, Logger: log})
		if err != nil {
			errs = append(errs, err)
			break
		}
		id.auth = authenticator
		id.close = append(id.close, authenticator.Close)
	}
	errs = append(errs, flatten(id.openAudit(f.AuditFile, stdout))...)
	return id, errs
}

// openPolicy reads the policy and the secrets that it names. A new version of the file that is wrong, or that names
// another set of profiles, leaves the one in force: profiles come and go with a restart.
func (id *identity) openPolicy(file string, client *atlas.Client, mutual bool, log *slog.Logger) []error {
	parse := func(contents [][]byte) (*auth.Policy, error) { return auth.ParsePolicy(file, contents[0]) }
	var first *auth.Policy
	policy, err := reload.New([]string{file}, func(contents [][]byte) (*auth.Policy, error) {
		p, err := parse(contents)
		if err != nil || first == nil {
			return p, err
		}
		return p, sameProfiles(first, p)
	}, func(p *auth.Policy) {
		if err := id.auth.SetPolicy(p); err != nil {
			log.Error("the new policy cannot be used", slog.String("cause", err.Error()))
			return
		}
		log.Info("policy replaced", slog.String("file", file))
	}, reload.Report(log, "policy", file))
	if err != nil {
		var errs []error
		for _, err := range flatten(err) {
			errs = append(errs, fmt.Errorf("--policy-file: %w", err))
		}
		return errs
	}
	first = policy.Get()
	var errs []error
	if first.NeedsCertificates() && !mutual {
		errs = append(errs, errors.New("--policy-file: it has callers with client certificates, and none is asked for: give --tls-client-ca-file"))
	}
	for _, profile := range first.Profiles() {
		if err := id.addProfile(profile.Name, profile.UserauthtokenFile, client, log); err != nil {
			errs = append(errs, fmt.Errorf("--policy-file: %s:%d: profile %s: %w", file, profile.Line, profile.Name, err))
		}
	}
	authenticator, err := auth.New(auth.Config{Policy: first, Logger: log})
	if err != nil {
		return append(errs, err)
	}
	id.auth, id.policy = authenticator, first
	id.close = append(id.close, authenticator.Close)
	id.watch = append(id.watch, func(ctx context.Context) error { return policy.Run(ctx, reload.Interval) })
	return errs
}

// sameProfiles reports a change of the profiles, which needs a restart.
func sameProfiles(old, changed *auth.Policy) error {
	files := map[string]string{}
	for _, p := range old.Profiles() {
		files[p.Name] = p.UserauthtokenFile
	}
	for _, p := range changed.Profiles() {
		if files[p.Name] != p.UserauthtokenFile {
			return fmt.Errorf("profile %s is new or has another file: restart tokend to use it", p.Name)
		}
		delete(files, p.Name)
	}
	for name := range files {
		return fmt.Errorf("profile %s is gone: restart tokend to drop it", name)
	}
	return nil
}

// addProfile makes an Atlas identity of the userauthtoken in a file.
func (id *identity) addProfile(name, file string, client *atlas.Client, log *slog.Logger) error {
	var source *atlas.TokenSource
	secret, err := reload.New([]string{file}, parseSecret, func(atlas.UserAuthToken) {
		source.SecretChanged()
		log.Info("userauthtoken replaced", slog.String("profile", name))
	}, reload.Report(log, "userauthtoken of profile "+name, file))
	if err != nil {
		return err
	}
	source = atlas.NewTokenSource(atlas.TokenSourceConfig{
		Client: client,
		Secret: func() (atlas.UserAuthToken, error) { return secret.Get(), nil },
		OnEvent: func(e atlas.TokenEvent) {
			if e.Err != nil {
				log.Error("Atlas identity failed", slog.String("profile", name), slog.String("operation", string(e.Op)), slog.String("cause", e.Err.Error()))
				return
			}
			log.Info("Atlas identity renewed", slog.String("profile", name), slog.String("operation", string(e.Op)))
		},
	})
	id.identities[name] = source
	id.close = append(id.close, source.Close)
	id.watch = append(id.watch, func(ctx context.Context) error { return secret.Run(ctx, reload.Interval) })
	return nil
}

// parseSecret takes the userauthtoken out of its file: one word, as an editor or kubectl leaves it.
func parseSecret(contents [][]byte) (atlas.UserAuthToken, error) {
	secret := bytes.TrimSpace(contents[0])
	if len(secret) == 0 || bytes.ContainsAny(secret, " \t\r\n\x00") {
		return "", errors.New("it must have the userauthtoken in it, and nothing else")
	}
	return atlas.UserAuthToken(secret), nil
}

func (id *identity) openAudit(file string, stdout io.Writer) error {
	switch file {
	case "":
		return nil
	case "-":
	default:
		f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("--audit-file: %w", err)
		}
		stdout = f
		id.close = append(id.close, func() { _ = f.Close() })
	}
	id.audit = slog.New(slog.NewJSONHandler(stdout, nil))
	return nil
}
