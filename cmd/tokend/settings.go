package main

import (
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"strings"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/lograte"
	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

// listenFlags are the settings that serve and dev share.
type listenFlags struct {
	GRPCAddr, HTTPAddr, AdminAddr string
	Socket                        socketFlags
	DrainDelay, DrainTimeout      time.Duration
	Pprof                         bool
	LogLevel, LogFormat           string
}

// declare has the delay of a drain as it is by default.
func (f *listenFlags) declare(flags flags, drainDelay string) {
	at := flags.about(aboutListeners)
	at.text(&f.GRPCAddr, "grpc-addr", "127.0.0.1:9090", "HOST:PORT", "Where to serve gRPC: host:port or unix:/path; empty turns it off.")
	f.Socket.declare(at)
	at.text(&f.HTTPAddr, "http-addr", "127.0.0.1:8080", "HOST:PORT", "Where to serve REST; empty turns it off.")
	at.text(&f.AdminAddr, "admin-addr", "127.0.0.1:9091", "HOST:PORT", "Where to serve /healthz, /readyz and /metrics, in plaintext; empty turns it off.")
	at.boolean(&f.Pprof, "debug-pprof", "Serve /debug/pprof on the admin address.")
	stopping := flags.about(aboutStopping)
	stopping.duration(&f.DrainDelay, false, "drain-delay", drainDelay, "How long to go on serving after SIGTERM, no longer ready, until load balancers and clients have noticed.")
	stopping.duration(&f.DrainTimeout, true, "drain-timeout", "25s", "How long calls in progress may take to finish after that. A stop may take up to a second longer than both together, or two if it exports traces: a platform that kills has to wait for longer than that.")
	logging := flags.about(aboutLogging)
	logging.oneOf(&f.LogLevel, "log-level", "info", "LEVEL", "debug (every call), info, warn or error.", "debug", "info", "warn", "error")
	logging.oneOf(&f.LogFormat, "log-format", "json", "FORMAT", "json or text.", "json", "text")
}

// tlsFlags protect the gRPC and REST listeners.
type tlsFlags struct {
	CertFile, KeyFile, ClientCAFile string
	SPIFFESocket                    string
	Plaintext                       bool
}

func (f *tlsFlags) declare(flags flags) {
	flags = flags.about(aboutTLS)
	flags.file(&f.CertFile, "tls-cert-file", "Server certificate, PEM, for gRPC and REST. A replaced file is picked up.")
	flags.file(&f.KeyFile, "tls-key-file", "Its private key, PEM.")
	flags.file(&f.ClientCAFile, "tls-client-ca-file", "Demand client certificates that these authorities signed (mTLS). With a policy that has rules for oidc or atlas_jwt, a caller may show none; one that is shown must be good.")
	flags.text(&f.SPIFFESocket, "spiffe-socket", "", "ADDRESS", "Have certificate, key and client authorities from a SPIFFE agent instead of files: the socket of its Workload API, such as unix:///run/spire/agent.sock. Callers show certificates of the same trust domain, as with --tls-client-ca-file. What the agent replaces is picked up.")
	flags.boolean(&f.Plaintext, "plaintext", "Serve beyond loopback without TLS. Say it only if something in front of tokend encrypts.")
}

// atlasFlags say which Atlas to ask.
type atlasFlags struct {
	URL, CAFile                   string
	Timeout                       time.Duration
	MaxCalls                      int
	ClientCertFile, ClientKeyFile string
}

func (f *atlasFlags) declare(flags flags) {
	flags = flags.about(aboutAtlas)
	flags.text(&f.URL, "atlas-url", "https://atlas.forsta.io/v1", "URL", "Atlas's base URL; https only.")
	flags.file(&f.CAFile, "atlas-ca-file", "Authorities to trust for Atlas beside the system's, PEM. A replaced file is picked up.")
	flags.duration(&f.Timeout, true, "atlas-timeout", "10s", "How long Atlas may take for one operation.")
	flags.count(&f.MaxCalls, "atlas-max-calls", "256", "How many creates and deletes may be at Atlas at a time. One profile or org can have half of them.")
	flags.file(&f.ClientCertFile, "atlas-cert-file", "Certificate to show to whoever asks for one, such as a proxy in front of Atlas, PEM. A replaced file is picked up.")
	flags.file(&f.ClientKeyFile, "atlas-key-file", "Its private key, PEM.")
}

// wantsTLS reports whether there is to be any, whatever becomes of the files.
func (f *tlsFlags) wantsTLS() bool {
	return f.CertFile != "" || f.KeyFile != "" || f.ClientCAFile != "" || f.SPIFFESocket != ""
}

// mutual reports whether callers are asked for client certificates.
func (f *tlsFlags) mutual() bool { return f.ClientCAFile != "" || f.SPIFFESocket != "" }

func (f *tlsFlags) open(s *setup) {
	s.Plaintext = f.Plaintext
	if !f.wantsTLS() {
		return
	}
	if f.Plaintext {
		s.fail("--plaintext", errors.New("it contradicts TLS, which is set up: choose one"))
	}
	if f.SPIFFESocket != "" {
		f.openSPIFFE(s)
		return
	}
	if f.CertFile == "" && f.KeyFile == "" {
		s.fail("--tls-client-ca-file", errors.New("there is no TLS without --tls-cert-file and --tls-key-file"))
		return
	}
	s.TLS.Certificate = s.certificate("tls", "server", f.CertFile, f.KeyFile, reload.ForServers, nil)
	s.TLS.ClientCAs = s.authorities("--tls-client-ca-file", "client_ca", f.ClientCAFile, nil, nil)
}

// logger writes to w in the chosen form.
func (f *listenFlags) logger(w io.Writer) *slog.Logger {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	opts := &slog.HandlerOptions{Level: levels[f.LogLevel]}
	var handler slog.Handler = slog.NewJSONHandler(w, opts)
	if f.LogFormat == "text" {
		handler = slog.NewTextHandler(w, opts)
	}
	log, _ := lograte.Limit(slog.New(handler)) // the server adds the metric to its own
	return log
}

// ceiling is the longest that any call may take: 30 s, or three operations of Atlas if that is more.
func (f *atlasFlags) ceiling() time.Duration { return max(30*time.Second, 3*f.Timeout) }

// failSecret says why the file of a secret cannot be used. A name that is no path is not repeated: it may be the secret.
func (s *setup) failSecret(flag, file string, err error) {
	if errors.Is(err, fs.ErrNotExist) && !strings.Contains(file, "/") {
		err = errors.New("there is no such file: give the path of a file with the secret in it, not the secret")
	}
	s.fail(flag, err)
}
