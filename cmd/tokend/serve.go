package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"google.golang.org/grpc/grpclog"

	"github.com/ForstaLabs/ephemeral-token-service/internal/lograte"
	"github.com/ForstaLabs/ephemeral-token-service/internal/sink"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// serveFlags are all settings of serve.
type serveFlags struct {
	listenFlags
	tlsFlags
	atlasFlags
	authFlags
	browserFlags
	cacheFlags
	limitFlags
}

func (f *serveFlags) declare(flags flags) {
	f.listenFlags.declare(flags, "5s")
	f.tlsFlags.declare(flags)
	f.atlasFlags.declare(flags)
	f.authFlags.declare(flags)
	f.browserFlags.declare(flags, false)
	f.cacheFlags.declare(flags)
	f.limitFlags.declare(flags)
}

// open reads all files.
func (f *serveFlags) open(in *invocation, stdout io.Writer, log *slog.Logger, trial bool) *setup {
	s := newSetup(&f.listenFlags, log)
	s.trial = trial
	s.openTraces(in.otel)
	f.tlsFlags.open(s)
	client := f.atlasFlags.open(s)
	f.authFlags.open(s, client, &f.tlsFlags, stdout)
	f.browserFlags.open(s)
	f.cacheFlags.open(s)
	f.limitFlags.open(s)
	s.validate(f.wantsTLS())
	return s
}

type serveCommand struct{ serveFlags }

func (c *serveCommand) execute(ctx context.Context, in *invocation) error {
	hangups := make(chan os.Signal, 1) // one more while one is seen to is seen to as well
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	signal.Ignore(syscall.SIGPIPE) // a reader of the log or of the audit records that goes away is not the end
	log, out := sink.ForLog(in.stderr, func(w io.Writer) slog.Handler { return c.logger(w).Handler() })
	defer out.Close()
	s := c.open(in, in.stdout, log, false)
	s.register(out.Lost)
	s.hangups, s.systemd = hangups, notifier{in.notifySocket, s.Logger}
	tuneCollector(s.Logger)
	err := s.serve(ctx, in, func(srv *server.Server) {
		s.Logger.InfoContext(ctx, "serving",
			slog.String("version", programVersion()),
			slog.String("grpc", describe(srv.GRPCAddr())),
			slog.String("http", describe(srv.HTTPAddr())),
			slog.String("admin", describe(srv.AdminAddr())),
			slog.String("tls", s.TLS.Mode()),
			slog.String("atlas", c.URL),
		)
		if s.Cache.TTL > 0 && s.Cache.Redis == nil {
			s.Logger.WarnContext(ctx, "tokens are remembered in this process. "+oneReplicaOnly)
		}
		s.status = fmt.Sprintf("Serving gRPC on %s, REST on %s.", describe(srv.GRPCAddr()), describe(srv.HTTPAddr()))
		s.systemd.ready(s.status)
	})
	if err == nil {
		s.Logger.InfoContext(ctx, "stopped")
	}
	return err
}

func describe(addr net.Addr) string {
	if addr == nil {
		return "off"
	}
	return addr.String()
}

// routeGRPCLog puts the warnings and errors of grpc-go and the gateway into our log, at a rate, since peers can cause them. They
// go to standard error in a form of their own otherwise.
func routeGRPCLog(log *slog.Logger) {
	warnings := slog.NewLogLogger(lograte.Kind(log, "grpc").Handler(), slog.LevelWarn).Writer()
	// Errors are written to the warnings' writer as well, so one writer has both.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, grpcLines{warnings}, io.Discard))
}

// grpcLines drops lines of grpc-go: those with a caller's metadata, which may be a credential, and those about its own attempts to
// connect, because package spiffe reports them once.
type grpcLines struct{ io.Writer }

func (w grpcLines) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("metadata")) || bytes.Contains(p, []byte("createTransport failed to connect")) {
		return len(p), nil
	}
	return w.Writer.Write(p)
}
