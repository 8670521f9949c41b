package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/config"
	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
	"github.com/ForstaLabs/ephemeral-token-service/internal/sink"
	"github.com/ForstaLabs/ephemeral-token-service/internal/spiffe"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// setup is what the flags describe, or all that is wrong with it. It has to be closed in either case.
type setup struct {
	server.Config

	files     *reload.Watcher
	atlas     *atlas.Client         // makes one attempt per call, and Config's Atlas is before it; nil if the flags are of no use
	svid      *spiffe.Source        // nil if certificates are in files
	oidcCAs   func() *x509.CertPool // nil without any
	profiles  *profiles             // nil without any
	auditFile *sink.File            // nil without one
	policy    *auth.Policy          // as it was at start; nil without one
	who       string                // may call, in words
	status    string                // for the service manager, while all is well
	systemd   notifier              // the service manager; of no effect where there is none
	hangups   <-chan os.Signal
	trial     bool    // the settings are checked, and nothing is served
	traces    *traces // nil without any
	tracesTo  string  // in words; "" without any
	ownID     string  // SPIFFE's, in words; "" if nobody has asked the agent
	close     []func()
	errs      []error
}

// newSetup has what the flags of every server say, and nothing behind it yet.
func newSetup(f *listenFlags, log *slog.Logger) *setup {
	s := &setup{Config: server.Config{
		GRPCAddr:     f.GRPCAddr,
		HTTPAddr:     f.HTTPAddr,
		AdminAddr:    f.AdminAddr,
		DrainDelay:   f.DrainDelay,
		DrainTimeout: f.DrainTimeout,
		Logger:       log,
		Metrics:      prometheus.NewRegistry(),
		Debug:        f.Pprof,
	}}
	if f.Pprof && f.AdminAddr == "" {
		s.fail("--debug-pprof", errors.New("without an --admin-addr it would be ignored"))
	}
	s.files = &reload.Watcher{Logger: s.Logger}
	s.CheckFiles = s.files.Check
	s.register(s.files, buildInfo())
	f.Socket.open(s, f.GRPCAddr)
	return s
}

// register adds to what /metrics shows.
func (s *setup) register(metrics ...prometheus.Collector) {
	for _, m := range metrics {
		if err := s.Metrics.Register(m); err != nil {
			s.errs = append(s.errs, err)
		}
	}
}

// Close ends what calls need. No call may be in progress any more.
func (s *setup) Close() {
	for _, end := range s.close {
		end()
	}
}

// fail notes that flag is wrong, a line for each of joined errors.
func (s *setup) fail(flag string, err error) {
	for _, err := range flatten(err) {
		s.errs = append(s.errs, fmt.Errorf("%s: %w", flag, err))
	}
}

// certificate watches a certificate and its key. purpose is what the flags begin with, name what the gauge calls it, and fit says
// what is wrong with a certificate for its use.
func (s *setup) certificate(purpose, name, certFile, keyFile string, fit func(*x509.Certificate) error, onChange func()) func() tls.Certificate {
	flags := "--" + purpose + "-cert-file and --" + purpose + "-key-file"
	if certFile == "" || keyFile == "" {
		s.fail(flags, errors.New("a certificate needs its key, and a key its certificate"))
		return nil
	}
	get, err := s.files.Certificate(name, certFile, keyFile, fit, onChange)
	s.fail(flags, err)
	if err == nil {
		s.warnIfPublic("--"+purpose+"-key-file", keyFile)
		s.failIfExpired(flags, get().Leaf)
	}
	return get
}

// failIfExpired is for whoever checks the settings before they are used. A service does start, and says so in its log: in an
// incident a restart must not make things worse, and a new certificate is picked up as soon as it is there.
func (s *setup) failIfExpired(flags string, cert *x509.Certificate) {
	if s.trial && time.Now().After(cert.NotAfter) {
		s.fail(flags, fmt.Errorf("the certificate expired at %s", cert.NotAfter.UTC().Format(time.RFC3339)))
	}
}

// warnIfPublic notes that everybody on this machine can read a secret.
func (s *setup) warnIfPublic(flag, file string) { warnIfPublic(s.Logger, flag, file) }

func warnIfPublic(log *slog.Logger, of, file string) {
	if info, err := os.Stat(file); err == nil && info.Mode().Perm()&0o004 != 0 {
		log.Warn("everybody on this machine can read a secret: take the file's permissions from others (chmod o=)",
			slog.String("of", of), slog.String("file", file), slog.String("mode", info.Mode().Perm().String()))
	}
}

// authorities watches a file of them, if there is one.
func (s *setup) authorities(flag, name, file string, base func() (*x509.CertPool, error), onChange func()) func() *x509.CertPool {
	if file == "" {
		return nil
	}
	get, err := s.files.Authorities(name, file, base, onChange)
	s.fail(flag, err)
	return get
}

// validate adds what the server finds wrong, in terms of flags. It leaves out what could not be opened, which is reported already.
func (s *setup) validate(wantsTLS bool) {
	for _, err := range config.Flatten(s.Validate()) {
		e := config.As(err)
		if e.Field == "Atlas" || e.Field == "TLS" || wantsTLS && strings.HasSuffix(e.Err.Error(), exposed) {
			continue
		}
		s.errs = append(s.errs, nameFlag(err))
	}
}

const exposed = "encrypts"

// flagOf names the flags by the fields of server.Config.
var flagOf = map[string]string{
	"GRPCAddr": "--grpc-addr", "HTTPAddr": "--http-addr", "AdminAddr": "--admin-addr", "Plaintext": "--plaintext", "MaxConns": "--max-connections",
	"Docs": "--docs", "CORSOrigins": "--cors-origin", "Cache.StaleIfError": "--cache-stale-if-error", "Cache.Redis.URL": "--cache-redis-url",
}

// nameFlag replaces the name of a field by its flag's.
func nameFlag(err error) error {
	if e := config.As(err); e != nil && flagOf[e.Field] != "" {
		return &config.Error{Field: flagOf[e.Field], Err: e.Err, MayPass: e.MayPass}
	}
	return err
}

// serve serves until ctx ends and the calls with it, and looks at the files meanwhile; if anything is wrong, it does neither.
// started is told when the addresses are bound.
func (s *setup) serve(ctx context.Context, in *invocation, started func(*server.Server)) error {
	defer s.Close()
	if err := in.check(s.errs...); err != nil {
		return err
	}
	routeGRPCLog(s.Logger)
	stopSVID, err := s.awaitSVID(ctx)
	defer stopSVID()
	if err != nil || ctx.Err() != nil { // which is no error
		return err
	}
	srv, err := server.New(s.Config)
	if err != nil {
		return err
	}
	started(srv)
	defer s.traces.flush(s.stopBy(ctx))
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	var watched sync.WaitGroup
	watched.Go(func() { s.files.Run(watching) })
	watched.Go(func() { s.rereadOn(watching, ctx, s.hangups) })
	defer s.tellOfStop(ctx)()
	defer watched.Wait()
	defer stop()
	return srv.Run(ctx)
}

// stopBy returns when a stop has to be over, as a function: ctx ends when it is asked for, and not before the function is called.
func (s *setup) stopBy(ctx context.Context) func() time.Time {
	asked := make(chan time.Time, 1)
	context.AfterFunc(ctx, func() { asked <- time.Now() })
	return func() time.Time {
		select {
		case at := <-asked:
			return at.Add(s.DrainDelay + s.DrainTimeout)
		default:
			return time.Now().Add(s.DrainTimeout) // nobody has asked: something has failed
		}
	}
}

// tellOfStop tells the service manager once ctx ends. Whoever calls what it returns waits until that is told, if it has begun.
func (s *setup) tellOfStop(ctx context.Context) func() {
	told := make(chan struct{})
	forget := context.AfterFunc(ctx, func() {
		defer close(told)
		s.systemd.stopping()
	})
	return func() {
		switch {
		case !forget():
			<-told
		case ctx.Err() != nil: // which the context is about to tell, and a quick drain is faster
			s.systemd.stopping()
		}
	}
}
