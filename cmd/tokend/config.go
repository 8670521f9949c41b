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

	"github.com/ForstaLabs/ephemeral-token-service/internal/cli"
	"github.com/ForstaLabs/ephemeral-token-service/internal/config"
	"github.com/ForstaLabs/ephemeral-token-service/internal/doctor"
	"github.com/ForstaLabs/ephemeral-token-service/internal/setup"
)

func configCommand(environ []string) *cobra.Command {
	var (
		set     setup.Settings
		explain string
	)
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check the settings of serve and show them, without serving.",
		Long:  "Check the settings of serve and show them, without serving. Secrets are in files, so no setting is one." + inEnvironment,
	}
	cli.ServeFlags(cmd, &set)
	cmd.Flags().StringVar(&explain, "explain", "", "Only say which rule of the policy this `CALLER` matches: spiffe://…, dns:NAME,\noidc:ISSUER#SUBJECT or atlas_jwt. The exit status is 1 if it matches none.")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		invalid := cli.Environment(cmd, environ, false)
		var warnings bytes.Buffer
		s := setup.Open(set, setup.Options{Build: build(), Environ: environ, Stdout: io.Discard, Logger: warningLog(&warnings), Trial: true})
		defer s.Close()
		if err := errors.Join(invalid, s.Err()); err != nil {
			return err
		}
		stdout := cmd.OutOrStdout()
		if explain != "" {
			return explainCaller(stdout, s, explain)
		}
		if err := askPeers(cmd.Context(), s); err != nil {
			return err
		}
		if err := cli.Show(stdout, cli.Settings(cmd, "explain")); err != nil {
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

func explainCaller(stdout io.Writer, s *setup.Setup, caller string) error {
	if s.Policy == nil {
		_, err := fmt.Fprint(stdout, "There is no policy. ", s.DescribeCallers())
		return err
	}
	rule, matches, err := s.Policy.Explain(caller)
	if err != nil {
		return config.Wrong("--explain", err)
	}
	if _, err := fmt.Fprintln(stdout, rule); err != nil || matches {
		return err
	}
	return errors.New("the policy does not let this caller in")
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
