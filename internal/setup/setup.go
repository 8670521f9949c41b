package setup

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/config"
	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
	"github.com/ForstaLabs/ephemeral-token-service/internal/sink"
	"github.com/ForstaLabs/ephemeral-token-service/internal/spiffe"
	"github.com/ForstaLabs/ephemeral-token-service/internal/status"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// Options are what a Setup needs besides its settings.
type Options struct {
	Build   Build
	Environ []string  // OpenTelemetry's variables and HTTPS_PROXY are looked up in it
	Stdout  io.Writer // of audit records, if the settings say so
	Logger  *slog.Logger
	Metrics []prometheus.Collector // in addition
	Shown   []status.Setting       // on the status page
	// Trial checks the settings without serving: an expired certificate is an error then, and no
	// file or exporter is left behind.
	Trial bool
}

// Setup is what the settings describe, or the mistakes in them. It must be closed in either case.
type Setup struct {
	Settings Settings
	// Config must not be used if there are Errors.
	Config server.Config
	// Errors has a *config.Error for each mistake, in terms of flags.
	Errors []error
	// Warnings are about settings that are allowed but risky. They have been logged as well.
	Warnings []Warning
	// Atlas makes one attempt per call, and the Atlas of Config goes through it. Nil if its
	// settings are wrong.
	Atlas *atlas.Client
	// Policy is the one at the start, nil without one.
	Policy *auth.Policy
	// OIDCAuthorities are trusted for OIDC issuers. Nil without a setting.
	OIDCAuthorities func() *x509.CertPool

	opts      Options
	log       *slog.Logger
	files     *reload.Watcher
	svid      *spiffe.Source // nil if certificates are in files
	logins    atlas.IdentityProvider
	profiles  *profiles
	auditFile *sink.File // nil without one
	tracer    *traces    // nil without traces
	status    string     // for the service manager, while all is well
	close     []func()
}

// Warning is about a setting, or a profile.
type Warning struct{ Setting, Text string }

// Open reads all files that the settings name, and connects to nothing.
func Open(settings Settings, opts Options) *Setup {
	metrics := prometheus.NewRegistry()
	s := &Setup{Settings: settings, opts: opts, log: opts.Logger, files: &reload.Watcher{Logger: opts.Logger}}
	set := &s.Settings
	s.checkChoice("--log-level", set.LogLevel, LogLevels)
	s.checkChoice("--log-format", set.LogFormat, LogFormats)
	s.checkAboveZero("--drain-timeout", set.DrainTimeout)
	for i, origin := range set.CORSOrigins {
		set.CORSOrigins[i] = strings.TrimSpace(origin)
	}
	s.Config = server.Config{
		GRPCAddr: set.GRPCAddr, HTTPAddr: set.HTTPAddr, AdminAddr: set.AdminAddr,
		GRPCSocketMode: s.socketMode(),
		Plaintext:      set.Plaintext,
		Docs:           set.Docs,
		CORSOrigins:    set.CORSOrigins,
		CallerRate:     set.CallerRate,
		MaxConns:       set.MaxConnections,
		DrainDelay:     set.DrainDelay,
		DrainTimeout:   set.DrainTimeout,
		Logger:         opts.Logger,
		Metrics:        metrics,
		Debug:          set.DebugPprof,
		Version:        opts.Build.ShortVersion(),
		Settings:       opts.Shown,
		CheckFiles:     s.files.Check,
	}
	if set.DebugPprof && set.AdminAddr == "" {
		s.wrong("--debug-pprof", errors.New("it would be ignored without --admin-addr"))
	}
	s.register(s.files, opts.Build.metric())
	s.register(opts.Metrics...)
	s.checkProxy()
	s.openTraces()
	s.openTLS()
	s.openAtlas()
	s.openCallers()
	s.openAudit()
	s.openCache()
	s.validate()
	return s
}

// Err returns all errors joined, nil if there are none.
func (s *Setup) Err() error { return errors.Join(s.Errors...) }

// Close releases what calls need. No call may be in progress.
func (s *Setup) Close() {
	for _, end := range s.close {
		end()
	}
}

// register adds metrics to /metrics.
func (s *Setup) register(metrics ...prometheus.Collector) {
	for _, m := range metrics {
		s.add(s.Config.Metrics.Register(m))
	}
}

// add reports errors, which may be joined, or nil.
func (s *Setup) add(err error) { s.Errors = append(s.Errors, config.Flatten(err)...) }

// wrong reports a mistake in a setting. It splits joined errors.
func (s *Setup) wrong(flag string, err error) {
	for _, err := range config.Flatten(err) {
		s.Errors = append(s.Errors, &config.Error{Field: flag, Err: err})
	}
}

// unusable reports a file, whose content may be right at the next start.
func (s *Setup) unusable(flag string, err error) {
	for _, err := range config.Flatten(err) {
		s.Errors = append(s.Errors, &config.Error{Field: flag, Err: err, MayPass: true})
	}
}

func (s *Setup) warn(w Warning) {
	s.Warnings = append(s.Warnings, w)
	w.log(s.log)
}

func (w Warning) log(log *slog.Logger) {
	log.Warn(w.Text, slog.String("of", w.Setting)) //nolint:sloglint // one of a few texts
}

// fieldFlags maps the fields of server.Config to the flags that set them.
var fieldFlags = map[string]string{
	"GRPCAddr": "--grpc-addr", "HTTPAddr": "--http-addr", "AdminAddr": "--admin-addr", "Plaintext": "--plaintext", "MaxConns": "--max-connections",
	"Docs": "--docs", "CORSOrigins": "--cors-origin", "CallerRate": "--caller-rate", "DrainDelay": "--drain-delay", "DrainTimeout": "--drain-timeout",
	"Cache.TTL": "--cache-ttl", "Cache.StaleIfError": "--cache-stale-if-error", "Cache.Redis.URL": "--cache-redis-url",
}

// nameFlags splits joined errors, and replaces field names by flags.
func nameFlags(err error) []error {
	errs := config.Flatten(err)
	for i, err := range errs {
		if e := config.As(err); e != nil && fieldFlags[e.Field] != "" {
			errs[i] = &config.Error{Field: fieldFlags[e.Field], Err: e.Err, MayPass: e.MayPass}
		}
	}
	return errs
}

// validate adds the mistakes that the server finds. A missing Atlas client has been reported
// already.
func (s *Setup) validate() {
	for _, err := range nameFlags(s.Config.Validate()) {
		if e := config.As(err); e == nil || e.Field != "Atlas" {
			s.Errors = append(s.Errors, err)
		}
	}
}

// publicSecret returns the warning about a secret that every user of this machine can read, nil if
// the file is private.
func publicSecret(setting, file string) *Warning {
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm()&0o004 == 0 {
		return nil
	}
	return &Warning{setting, fmt.Sprintf("%s: every user of this machine can read the secret, mode %v: remove the permissions of others (chmod o=)", file, info.Mode().Perm())}
}

// warnIfPublic is for the secrets that are opened once.
func (s *Setup) warnIfPublic(setting, file string) {
	if w := publicSecret(setting, file); w != nil {
		s.warn(*w)
	}
}

// checkExpiry reports an expired certificate in a trial. A service starts with one and logs it: a
// restart during an incident must not make things worse, and a new certificate is picked up.
func (s *Setup) checkExpiry(flags string, cert *x509.Certificate) {
	if s.opts.Trial && time.Now().After(cert.NotAfter) {
		s.unusable(flags, fmt.Errorf("the certificate expired at %s", cert.NotAfter.UTC().Format(time.RFC3339)))
	}
}
