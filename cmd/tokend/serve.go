package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"

	"google.golang.org/grpc/grpclog"

	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// serveFlags are all settings of serve.
type serveFlags struct {
	listenFlags `embed:""`
	tlsFlags    `embed:""`
	atlasFlags  `embed:""`
}

// config is what the flags mean, or every mistake in them.
func (f serveFlags) config(log io.Writer) (server.Config, []error) {
	cfg, errs := f.listenFlags.config(log)
	client, clientErrs := f.client()
	errs = append(errs, clientErrs...)
	if client != nil {
		cfg.Atlas = client
	}
	cfg.TLS = server.TLSFiles{CertFile: f.CertFile, KeyFile: f.KeyFile, ClientCAFile: f.ClientCAFile}
	cfg.Plaintext = f.Plaintext
	for _, err := range flatten(cfg.Validate()) {
		switch {
		case errors.Is(err, server.ErrNoAtlas): // the client's own mistakes say why
		case errors.Is(err, server.ErrExposed):
			errs = append(errs, fmt.Errorf("%w: give --tls-cert-file and --tls-key-file, or --plaintext if something in front of tokend encrypts", nameFlag(err)))
		case errors.Is(err, server.ErrTLSIncomplete):
			errs = append(errs, fmt.Errorf("--tls-cert-file and --tls-key-file: %w", err))
		case errors.Is(err, server.ErrTLSAndPlaintext):
			errs = append(errs, fmt.Errorf("--plaintext: %w", err))
		default:
			errs = append(errs, nameFlag(err))
		}
	}
	return cfg, errs
}

type serveCommand struct{ serveFlags }

func (c *serveCommand) execute(ctx context.Context, in *invocation) error {
	cfg, errs := c.config(in.stderr)
	if err := in.check(errs...); err != nil {
		return err
	}
	routeGRPCLog(cfg.Logger)
	srv, err := server.New(cfg)
	if err != nil {
		return err
	}
	cfg.Logger.InfoContext(ctx, "serving",
		slog.String("version", programVersion()),
		slog.String("grpc", describe(srv.GRPCAddr())),
		slog.String("http", describe(srv.HTTPAddr())),
		slog.String("admin", describe(srv.AdminAddr())),
		slog.String("tls", cfg.TLS.Mode()),
		slog.String("atlas", c.URL),
	)
	err = srv.Run(ctx)
	if err == nil {
		cfg.Logger.InfoContext(ctx, "stopped")
	}
	return err
}

func describe(addr net.Addr) string {
	if addr == nil {
		return "off"
	}
	return addr.String()
}

// routeGRPCLog puts the warnings and errors of grpc-go and the gateway into our log. They go to standard error in a form
// of their own otherwise.
func routeGRPCLog(log *slog.Logger) {
	warnings := slog.NewLogLogger(log.Handler(), slog.LevelWarn).Writer()
	// Errors are written to the warnings' writer as well, so one writer has both.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, warnings, io.Discard))
}
