package setup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"google.golang.org/grpc/grpclog"

	"github.com/ForstaLabs/ephemeral-token-service/internal/lograte"
	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// Serve serves until ctx is done and the calls have ended, and follows the files meanwhile. It
// reads them again for each value of hangups. It calls started once the addresses are bound. There
// must be no Errors.
func (s *Setup) Serve(ctx context.Context, hangups <-chan os.Signal, started func(*server.Server)) error {
	stopSVID, err := s.awaitSVID(ctx, maxSVIDWait)
	defer stopSVID()
	if err != nil || ctx.Err() != nil { // which is not an error
		return err
	}
	srv, err := server.New(s.Config)
	if err != nil {
		return errors.Join(nameFlags(err)...)
	}
	routeGRPCLog(s.log)
	s.profiles.start()
	started(srv)
	s.status = fmt.Sprintf("STATUS=Serving gRPC on %s, REST on %s.", Addr(srv.GRPCAddr()), Addr(srv.HTTPAddr()))
	s.notify(daemon.SdNotifyReady, s.status)
	if s.Config.Cache.TTL > 0 && s.Config.Cache.Redis == nil && !s.Settings.Dev {
		s.log.WarnContext(ctx, "tokens are cached in this process. "+oneReplicaOnly)
	}
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	var watched sync.WaitGroup
	watched.Go(func() { s.files.Run(watching) })
	watched.Go(func() { s.rereadOn(watching, ctx, hangups) })
	var deadline time.Time // of the drain
	watched.Go(func() {
		select {
		case <-ctx.Done():
		case <-watching.Done(): // a listener has failed, or the drain was quick
		}
		deadline = time.Now().Add(s.Config.DrainDelay + s.Config.DrainTimeout)
		if ctx.Err() != nil {
			s.notify(daemon.SdNotifyStopping, "STATUS=Draining.")
		}
	})
	err = srv.Run(ctx)
	stop()
	watched.Wait()
	s.tracer.flush(deadline)
	return err
}

// Addr returns a bound address in words.
func Addr(addr net.Addr) string {
	if addr == nil {
		return "off"
	}
	return addr.String()
}

// notify sends state to the service manager, if $NOTIFY_SOCKET is set.
func (s *Setup) notify(state ...string) {
	if _, err := daemon.SdNotify(false, strings.Join(state, "\n")); err != nil {
		s.log.Warn("cannot notify the service manager", slog.String("state", state[0]), slog.Any("cause", err))
	}
}

// rereadOn reads all files again at each hangup, until ctx is done. While the server stops, which
// serving reports, it does not say that it is ready again.
func (s *Setup) rereadOn(ctx, serving context.Context, hangups <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
		}
		if serving.Err() != nil {
			_ = s.reread() // logs its error
			continue
		}
		// The time lets the manager tell the READY=1 of this reload from an earlier one.
		s.notify(daemon.SdNotifyReloading, strings.TrimSpace(daemon.SdNotifyMonotonicUsec()), "STATUS=Reading the files again.")
		status := s.status
		if err := s.reread(); err != nil {
			status += " A file cannot be used, and the last good one stays: see the log."
		}
		if serving.Err() == nil {
			s.notify(daemon.SdNotifyReady, status)
		}
	}
}

// reread reads the policy, secrets, certificates and authorities at once, and opens the audit file
// again, so that rotating it takes a rename and a SIGHUP. It logs one line.
func (s *Setup) reread() error {
	looked := s.files.Look()
	if s.auditFile != nil {
		looked = looked.And(reload.Looked{Files: []string{s.Settings.AuditFile}, Err: s.auditFile.Reopen()})
	}
	attrs := []slog.Attr{slog.Any("files", looked.Files), slog.Any("changed", append([]string{}, looked.Changed...))}
	level, text := slog.LevelInfo, "files read again on SIGHUP"
	if looked.Err != nil {
		level, text = slog.LevelError, "files read again on SIGHUP, not all can be used; the last good ones stay"
		attrs = append(attrs, slog.String("cause", looked.Err.Error()))
	}
	s.log.LogAttrs(context.Background(), level, text, attrs...) //nolint:sloglint // one of two texts
	return looked.Err
}

// grpcLog is where the warnings and errors of grpc-go and the gateway go. Peers can cause them, so
// they are logged at a rate.
var grpcLog atomic.Pointer[io.Writer]

// grpc-go reads its logger without a lock, so it is set before anything else runs.
func init() {
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, grpcWarnings{}, io.Discard)) // errors are written as warnings too
}

// routeGRPCLog sends the lines to the log of the server that was set up last.
func routeGRPCLog(log *slog.Logger) {
	w := slog.NewLogLogger(lograte.Kind(log, "grpc").Handler(), slog.LevelWarn).Writer()
	grpcLog.Store(&w)
}

// grpcWarnings drops lines of grpc-go: those with a caller's metadata, which may have a credential
// in it; those about its own attempts to connect, because package spiffe reports them once; and
// those about a client that closed its connection, as one does that watches the health.
type grpcWarnings struct{}

func (grpcWarnings) Write(p []byte) (int, error) {
	to := grpcLog.Load()
	if to == nil {
		return len(p), nil
	}
	for _, dropped := range []string{"metadata", "createTransport failed to connect", "transport is closing"} {
		if bytes.Contains(p, []byte(dropped)) {
			return len(p), nil
		}
	}
	return (*to).Write(p)
}
