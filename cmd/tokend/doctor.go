package main

import (
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

func doctorCommand(environ []string) *cobra.Command {
	var (
		set     setup.Settings
		asJSON  bool
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out what is wrong with the settings of serve and with everything that they name.",
		Long:  "Find out what is wrong with the settings of serve and with everything that they name. It serves nothing\nand changes nothing: it logs in once for each userauthtoken, and asks Atlas for no token." + inEnvironment,
	}
	cli.ServeFlags(cmd, &set)
	cmd.Flags().BoolVar(&asJSON, "json", false, "Print the findings as JSON.")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "How long each check may take.")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := cli.Environment(cmd, environ, false); err != nil {
			return err
		}
		if timeout <= 0 {
			return config.Wrong("--timeout", fmt.Errorf("%v: must be above zero", timeout))
		}
		findings := doctor.Examine(cmd.Context(), func() *setup.Setup {
			return setup.Open(set, setup.Options{Build: build(), Environ: environ, Stdout: io.Discard, Logger: slog.New(slog.DiscardHandler), Trial: true})
		}, timeout)
		write := doctor.WriteTable
		if asJSON {
			write = doctor.WriteJSON
		}
		if err := write(cmd.OutOrStdout(), findings); err != nil {
			return err
		}
		if n := doctor.Count(findings, doctor.Failed); n > 0 {
			return fmt.Errorf("%d of %d checks failed", n, len(findings))
		}
		return nil
	}
	return cmd
}
