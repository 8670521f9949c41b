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

// listenFlags are the settings that serve and dev share.
type listenFlags struct {
	GRPCAddr, HTTPAddr, AdminAddr string
	DrainTimeout                  time.Duration
	LogLevel, LogFormat           string
}

func (f *listenFlags) declare(flags flags) {
	flags.text(&f.GRPCAddr, "grpc-addr", "127.0.0.1:9090", "HOST:PORT", "Where to serve gRPC: host:port or unix:/path; empty turns it off.")
	flags.text(&f.HTTPAddr, "http-addr", "127.0.0.1:8080", "HOST:PORT", "Where to serve REST; empty turns it off.")
	flags.text(&f.AdminAddr, "admin-addr", "127.0.0.1:9091", "HOST:PORT", "Where to serve /healthz, /readyz and /metrics, in plaintext; empty turns it off.")
	flags.positiveDuration(&f.DrainTimeout, "drain-timeout", "25s", "How long calls in progress may take to finish after SIGTERM.")
	flags.oneOf(&f.LogLevel, "log-level", "info", "LEVEL", "debug (every call), info, warn or error.", "debug", "info", "warn", "error")
	flags.oneOf(&f.LogFormat, "log-format", "json", "FORMAT", "json or text.", "json", "text")
}

// tlsFlags protect the gRPC and REST listeners.
type tlsFlags struct {
	CertFile, KeyFile, ClientCAFile string
	Plaintext                       bool
}

func (f *tlsFlags) declare(flags flags) {
	flags.file(&f.CertFile, "tls-cert-file", "Server certificate, PEM, for gRPC and REST. A replaced file is picked up.")
	flags.file(&f.KeyFile, "tls-key-file", "Its private key, PEM.")
	flags.file(&f.ClientCAFile, "tls-client-ca-file", "Demand client certificates that these authorities signed (mTLS). With a policy that has rules for oidc or atlas_jwt, a caller may show none; one that is shown must be good.")
	flags.boolean(&f.Plaintext, "plaintext", "Serve beyond loopback without TLS. Say it only if something in front of tokend encrypts.")
}

// atlasFlags say which Atlas to ask.
type atlasFlags struct {
	URL, CAFile                   string
	Timeout                       time.Duration
	ClientCertFile, ClientKeyFile string
}

func (f *atlasFlags) declare(flags flags) {
	flags.text(&f.URL, "atlas-url", "https://atlas.forsta.io/v1", "URL", "Atlas's base URL; https only.")
	flags.file(&f.CAFile, "atlas-ca-file", "Authorities to trust for Atlas beside the system's, PEM. A replaced file is picked up.")
	flags.positiveDuration(&f.Timeout, "atlas-timeout", "10s", "How long Atlas may take for one operation.")
	flags.file(&f.ClientCertFile, "atlas-cert-file", "Certificate to show to whoever asks for one, such as a proxy in front of Atlas, PEM. A replaced file is picked up.")
	flags.file(&f.ClientKeyFile, "atlas-key-file", "Its private key, PEM.")
}

// logger writes to w in the chosen form.
func (f *listenFlags) logger(w io.Writer) *slog.Logger {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	opts := &slog.HandlerOptions{Level: levels[f.LogLevel]}
	if f.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(w, opts))
	}
	return slog.New(slog.NewJSONHandler(w, opts))
}

// config is what the flags mean to the server. Its Atlas is for the caller to fill in.
func (f *listenFlags) config(log io.Writer) server.Config {
	return server.Config{
		GRPCAddr:     f.GRPCAddr,
		HTTPAddr:     f.HTTPAddr,
		AdminAddr:    f.AdminAddr,
		DrainTimeout: f.DrainTimeout,
		Logger:       f.logger(log),
	}
}

// ceiling is the longest that any call may take: 30 s, or three operations of Atlas if that is more.
func (f *atlasFlags) ceiling() time.Duration { return max(30*time.Second, 3*f.Timeout) }

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
