package main

import (
	"fmt"
	"net"

	"github.com/spf13/cobra"

	"github.com/ForstaLabs/ephemeral-token-service/internal/cli"
	"github.com/ForstaLabs/ephemeral-token-service/internal/config"
	"github.com/ForstaLabs/ephemeral-token-service/internal/doctor"
)

// healthcheckCommand asks a running tokend whether it is alive, for images without a shell.
func healthcheckCommand(environ []string) *cobra.Command {
	var addr string
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Exit 0 if the tokend on this machine is alive, 1 if not.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.Environment(cmd, environ, true); err != nil {
				return err
			}
			if _, _, err := net.SplitHostPort(addr); err != nil {
				return config.Wrong("--admin-addr", fmt.Errorf("%q is not host:port, and health is served there", addr))
			}
			if err := doctor.AskHealth(cmd.Context(), addr); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "healthy")
			return err
		},
	}
	cmd.Flags().StringVar(&addr, "admin-addr", "127.0.0.1:9091", "`HOST:PORT` that the running tokend has as --admin-addr.")
	return cmd
}
