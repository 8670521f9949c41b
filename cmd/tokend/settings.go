package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"strings"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/server"
	"github.com/ForstaLabs/ephemeral-token-service/server/listen"
)

// Values that can be wrong are strings here and are parsed in check: the flag parser stops at the first bad one, and the
// user should hear of them all.

// listenFlags are the settings that serve and dev share.
type listenFlags struct {
	GRPCAddr     string `name:"grpc-addr" default:"127.0.0.1:9090" placeholder:"HOST:PORT" help:"Where to serve gRPC: host:port or unix:/path; empty turns it off."`
	HTTPAddr     string `name:"http-addr" default:"127.0.0.1:8080" placeholder:"HOST:PORT" help:"Where to serve REST; empty turns it off."`
	AdminAddr    string `name:"admin-addr" default:"127.0.0.1:9091" placeholder:"HOST:PORT" help:"Where to serve /healthz, /readyz and /metrics, in plaintext; empty turns it off."`
	DrainTimeout string `name:"drain-timeout" default:"25s" placeholder:"DURATION" help:"How long calls in progress may take to finish after SIGTERM."`
	LogLevel     string `name:"log-level" default:"info" placeholder:"LEVEL" help:"debug (every call), info, warn or error."`
	LogFormat    string `name:"log-format" default:"json" placeholder:"FORMAT" help:"json or text."`
}

// tlsFlags protect the gRPC and REST listeners.
type tlsFlags struct {
	CertFile     string `name:"tls-cert-file" placeholder:"FILE" help:"Server certificate, PEM, for gRPC and REST. A replaced file is picked up."`
	KeyFile      string `name:"tls-key-file" placeholder:"FILE" help:"Its private key, PEM."`
	ClientCAFile string `name:"tls-client-ca-file" placeholder:"FILE" help:"Demand client certificates that these authorities signed (mTLS). With a policy that has rules for oidc or atlas_jwt, a caller may show none; one that is shown must be good."`
	Plaintext    bool   `name:"plaintext" help:"Serve beyond loopback without TLS. Say it only if something in front of tokend encrypts."`
}

// atlasFlags say which Atlas to ask.
type atlasFlags struct {
	URL     string `name:"atlas-url" default:"https://atlas.forsta.io/v1" placeholder:"URL" help:"Atlas's base URL; https only."`
	CAFile  string `name:"atlas-ca-file" placeholder:"FILE" help:"Authorities to trust for Atlas beside the system's, PEM. A replaced file is picked up."`
	Timeout string `name:"atlas-timeout" default:"10s" placeholder:"DURATION" help:"How long Atlas may take for one operation."`

	ClientCertFile string `name:"atlas-cert-file" placeholder:"FILE" help:"Certificate to show to whoever asks for one, such as a proxy in front of Atlas, PEM. A replaced file is picked up."`
	ClientKeyFile  string `name:"atlas-key-file" placeholder:"FILE" help:"Its private key, PEM."`
}

// logger writes to w in the chosen form.
func (f listenFlags) logger(w io.Writer) (*slog.Logger, error) {
	level, levelErr := slog.LevelInfo, error(nil)
	switch f.LogLevel {
	case "debug":
		level = slog.LevelDebug
	case "info":
	case "warn":
		level = slog.LevelWarn
	case "error":
		level = slog.LevelError
	default:
		levelErr = fmt.Errorf("--log-level: %q is not one of debug, info, warn, error", f.LogLevel)
	}
	opts := &slog.HandlerOptions{Level: level}
	switch f.LogFormat {
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), levelErr
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), levelErr
	}
	return nil, errors.Join(levelErr, fmt.Errorf("--log-format: %q is not one of json, text", f.LogFormat))
}

// config is what the flags mean to the server. Its Atlas is for the caller to fill in.
func (f listenFlags) config(log io.Writer) (server.Config, []error) {
	drain, drainErr := positiveDuration("drain-timeout", f.DrainTimeout)
	logger, logErr := f.logger(log)
	return server.Config{
		GRPCAddr:     f.GRPCAddr,
		HTTPAddr:     f.HTTPAddr,
		AdminAddr:    f.AdminAddr,
		DrainTimeout: drain,
		Logger:       logger,
	}, flatten(drainErr, logErr)
}

// ceiling is the longest that any call may take: 30 s, or three operations of Atlas if that is more.
func (f atlasFlags) ceiling() time.Duration {
	timeout, err := positiveDuration("atlas-timeout", f.Timeout)
	if err != nil {
		return 0 // the default; the mistake is reported elsewhere
	}
	return max(30*time.Second, 3*timeout)
}

func positiveDuration(flag, value string) (time.Duration, error) {
	d, err := time.ParseDuration(value)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("--%s: %q is not a duration above zero such as 500ms or 10s", flag, value)
	}
	return d, nil
}

// secretFileError is why the file of a secret cannot be used. A name that is no path is not repeated: it may be the secret.
func secretFileError(flag, file string, err error) error {
	if errors.Is(err, fs.ErrNotExist) && !strings.Contains(file, "/") {
		return fmt.Errorf("--%s: there is no such file: give the path of a file with the secret in it, not the secret", flag)
	}
	return fmt.Errorf("--%s: %w", flag, err)
}

// nameFlag puts the flag's name in front of what is wrong with an address.
func nameFlag(err error) error {
	var wrong *listen.Error
	if !errors.As(err, &wrong) {
		return err
	}
	return fmt.Errorf("--%s-addr %s: %w", strings.ToLower(wrong.Listener), wrong.Addr, wrong.Err)
}

// flatten drops the nil errors and takes joined ones apart, so that each mistake is a line of its own.
func flatten(errs ...error) []error {
	var all []error
	for _, err := range errs {
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			all = append(all, flatten(joined.Unwrap()...)...)
		} else if err != nil {
			all = append(all, err)
		}
	}
	return all
}
