package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/cli"
	"github.com/ForstaLabs/ephemeral-token-service/internal/config"
	"github.com/ForstaLabs/ephemeral-token-service/internal/doctor"
	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
	"github.com/ForstaLabs/ephemeral-token-service/internal/setup"
)

func configCommand(environ []string) *cobra.Command {
	var (
		set             setup.Settings
		explain, expect string
	)
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check the settings of serve and show them, without serving.",
		Long:  "Check the settings of serve and show them, without serving. Secrets are in files, so no setting is one." + inEnvironment,
	}
	cli.ServeFlags(cmd, &set)
	cmd.Flags().StringVar(&explain, "explain", "", "Only say which rule of the policy this `CALLER` matches: spiffe://…, dns:NAME,\noidc:ISSUER#SUBJECT or atlas_jwt. The exit status is 1 if it matches none.")
	cmd.Flags().StringVar(&expect, "expect-file", "", "Only check that the policy decides as this YAML `FILE` expects. The exit status is 1 if\nit does not.")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		invalid, stdout := cli.Environment(cmd, environ, false), cmd.OutOrStdout()
		if invalid == nil && (explain != "" || expect != "") {
			return askPolicy(stdout, set.PolicyFile, explain, expect)
		}
		var warnings bytes.Buffer
		s := setup.Open(set, setup.Options{Build: build(), Environ: environ, Stdout: io.Discard, Logger: warningLog(&warnings), Trial: true})
		defer s.Close()
		if err := errors.Join(invalid, s.Err()); err != nil {
			return err
		}
		if err := askPeers(cmd.Context(), s); err != nil {
			return err
		}
		if err := cli.Show(stdout, cli.Settings(cmd, "explain", "expect-file")); err != nil {
			return err
		}
		fmt.Fprint(stdout, "\n", s.Describe())
		if warnings.Len() > 0 {
			fmt.Fprintf(stdout, "\n%s", &warnings)
		}
		return nil
	}
	return cmd
}

// askPolicy needs no other setting than the policy, so that it works where there are no secrets and
// certificates, as in CI.
func askPolicy(stdout io.Writer, policyFile, explain, expect string) error {
	policy, err := parseFile("--policy-file", policyFile, auth.ParsePolicy)
	if err != nil {
		return err
	}
	var errs []error
	if explain != "" {
		errs = append(errs, explainCaller(stdout, policy, explain))
	}
	if expect != "" {
		errs = append(errs, checkExpectations(stdout, policy, expect))
	}
	return errors.Join(errs...)
}

func explainCaller(stdout io.Writer, policy *auth.Policy, caller string) error {
	rule, matches, err := policy.Explain(caller)
	if err != nil {
		return config.Wrong("--explain", err)
	}
	if _, err := fmt.Fprintln(stdout, rule); err != nil || matches {
		return err
	}
	return errors.New("the policy does not let this caller in")
}

func checkExpectations(stdout io.Writer, policy *auth.Policy, file string) error {
	expected, err := parseFile("--expect-file", file, auth.ParseExpectations)
	if err != nil {
		return err
	}
	if unmet := policy.Unmet(expected); len(unmet) > 0 {
		return errors.Join(unmet...)
	}
	_, err = fmt.Fprintf(stdout, "The policy meets the %d expectations in %s.\n", len(expected), file)
	return err
}

// parseFile reads and parses the file of a setting. A file that cannot be read may come later.
func parseFile[T any](flag, file string, parse func(string, []byte) (T, error)) (T, error) {
	var none T
	if file == "" {
		return none, config.Wrong(flag, errors.New("it must be set"))
	}
	data, err := reload.Read(file)
	if err != nil {
		return none, &config.Error{Field: flag, Err: err, MayPass: true}
	}
	parsed, err := parse(file, data)
	var errs []error
	for _, err := range config.Flatten(err) {
		errs = append(errs, config.Wrong(flag, err))
	}
	return parsed, errors.Join(errs...)
}

// patience bounds the wait for the SPIFFE agent and the policy's OIDC issuers.
const patience = 15 * time.Second

// askPeers reports an agent or issuers that do not answer. serve starts without the issuers, and
// tries again.
func askPeers(ctx context.Context, s *setup.Setup) error {
	var errs []error
	for _, f := range doctor.ExaminePeers(ctx, s, patience) {
		if f.Status == doctor.Failed {
			errs = append(errs, fmt.Errorf("%s: %s. %s", f.Check, f.Detail, f.Remedy))
		}
	}
	return errors.Join(errs...)
}

// warningLog writes the warnings that serve would log, without the time.
func warningLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		switch {
		case len(groups) > 0:
		case a.Key == slog.TimeKey, a.Key == slog.LevelKey:
			return slog.Attr{}
		case a.Key == slog.MessageKey:
			a.Key = "warning"
		}
		return a
	}}))
}
