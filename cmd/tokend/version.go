package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ForstaLabs/ephemeral-token-service/internal/cli"
)

func versionCommand(environ []string) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.Environment(cmd, environ, true); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "tokend", build())
			return err
		},
	}
}
