package main

import (
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/ForstaLabs/ephemeral-token-service/internal/cli"
	"github.com/ForstaLabs/ephemeral-token-service/internal/setup"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// inEnvironment is the part of a command's help about environment variables.
const inEnvironment = "\n\nEach flag can be given as an environment variable: --atlas-url is TOKEND_ATLAS_URL. A flag wins."

func serveCommand(environ []string) *cobra.Command {
	var set setup.Settings
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve gRPC and REST until SIGTERM.",
		Long:  "Serve gRPC and REST until SIGTERM. SIGHUP reads all files again." + inEnvironment,
		RunE: func(cmd *cobra.Command, _ []string) error {
			invalid := cli.Environment(cmd, environ, false)
			return serve(cmd, set, environ, invalid)
		},
	}
	cli.ServeFlags(cmd, &set)
	return cmd
}

func serve(cmd *cobra.Command, set setup.Settings, environ []string, invalid error) error {
	ctx := cmd.Context()
	hangups := make(chan os.Signal, 1) // one more that comes while one is handled is handled too
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	signal.Ignore(syscall.SIGPIPE) // when the reader of the log or of the audit records goes away, the service stays
	log, out := set.Log(cmd.ErrOrStderr(), environ)
	defer out.Close()
	s := setup.Open(set, setup.Options{
		Build: build(), Environ: environ, Stdout: cmd.OutOrStdout(), Logger: log, Metrics: []prometheus.Collector{out.Lost},
		Shown: cli.Settings(cmd),
	})
	defer s.Close()
	if err := errors.Join(invalid, s.Err()); err != nil {
		return err
	}
	err := s.Serve(ctx, hangups, func(srv *server.Server) {
		log.InfoContext(ctx, "serving",
			slog.String("version", build().ShortVersion()),
			slog.String("grpc", setup.Addr(srv.GRPCAddr())),
			slog.String("http", setup.Addr(srv.HTTPAddr())),
			slog.String("admin", setup.Addr(srv.AdminAddr())),
			slog.String("tls", s.Config.TLS.Mode()),
			slog.String("atlas", set.AtlasURL),
		)
	})
	if err == nil {
		log.InfoContext(ctx, "stopped")
	}
	return err
}
