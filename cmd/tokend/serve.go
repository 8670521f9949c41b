package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/grpclog"

	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// serveFlags are all settings of serve.
type serveFlags struct {
	listenFlags
	tlsFlags
	atlasFlags
	identityFlags
	cacheFlags
}

func (f *serveFlags) declare(flags flags) {
	f.listenFlags.declare(flags)
	f.tlsFlags.declare(flags)
	f.atlasFlags.declare(flags)
	f.identityFlags.declare(flags)
	f.cacheFlags.declare(flags)
}

// config is what the flags mean, or all validation errors. The callers have to be closed in either case.
func (f *serveFlags) config(stdout, log io.Writer) (server.Config, *callers, []error) {
	cfg := f.listenFlags.config(log)
	logger := cfg.Logger
	client, errs := f.client(logger)
	if client.Client != nil {
		cfg.Atlas = client
	}
	// A login between two tries fits, or a slow Atlas would be taken for a slow caller.
	cfg.CallCeiling = f.ceiling()
	id, identityErrs := f.open(client.Client, f.ClientCAFile != "", stdout, logger)
	errs = append(errs, identityErrs...)
	cache, files, cacheErrs := f.cacheFlags.config(logger)
	errs = append(errs, cacheErrs...)
	cfg.Cache = cache
	id.watch = slices.Concat(id.watch, client.watch, files.watch)
	cfg.Auth, cfg.Audit = id.auth, id.audit
	cfg.TLS = server.TLSFiles{CertFile: f.CertFile, KeyFile: f.KeyFile, ClientCAFile: f.ClientCAFile}
	cfg.Plaintext = f.Plaintext
	cfg.Metrics = prometheus.NewRegistry()
	for _, collector := range slices.Concat(client.metrics, id.metrics, files.metrics) {
		errs = append(errs, flatten(cfg.Metrics.Register(collector))...)
	}
	for _, err := range flatten(cfg.Validate()) {
		switch {
		case errors.Is(err, server.ErrNoAtlas): // the client's own errors say why
		case errors.Is(err, server.ErrExposed):
			errs = append(errs, fmt.Errorf("%w: give --tls-cert-file and --tls-key-file, or --plaintext if something in front of tokend encrypts", nameFlag(err)))
		case errors.Is(err, server.ErrTLSIncomplete):
			errs = append(errs, fmt.Errorf("--tls-cert-file and --tls-key-file: %w", err))
		case errors.Is(err, server.ErrTLSAndPlaintext):
			errs = append(errs, fmt.Errorf("--plaintext: %w", err))
		default:
			errs = append(errs, nameCacheFlag(nameFlag(err)))
		}
	}
	return cfg, id, errs
}

type serveCommand struct{ serveFlags }

func (c *serveCommand) execute(ctx context.Context, in *invocation) error {
	cfg, id, errs := c.config(in.stdout, in.stderr)
	defer id.Close()
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
	if cfg.Cache.TTL > 0 && cfg.Cache.Redis == nil {
		cfg.Logger.WarnContext(ctx, "tokens are remembered in this process. "+oneReplicaOnly)
	}
	err = serveAndWatch(ctx, srv, id)
	if err == nil {
		cfg.Logger.InfoContext(ctx, "stopped")
	}
	return err
}

// serveAndWatch serves, and re-reads the files meanwhile, until ctx ends.
func serveAndWatch(ctx context.Context, srv *server.Server, id *callers) error {
	watching, stopWatching := context.WithCancel(ctx)
	watched := make(chan error, 1)
	go func() { watched <- id.run(watching) }()
	err := srv.Run(ctx)
	stopWatching()
	return errors.Join(err, <-watched)
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
