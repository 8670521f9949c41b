// Package setup makes a server from an operator's settings. It reads the files, makes the Atlas
// client, the profiles and the log, and reports all mistakes in the settings at once.
package setup

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/internal/config"
	"github.com/ForstaLabs/ephemeral-token-service/internal/listen"
	"github.com/ForstaLabs/ephemeral-token-service/internal/lograte"
	"github.com/ForstaLabs/ephemeral-token-service/internal/sink"
)

// Settings has one field for each flag and its environment variable. Package cli describes them.
type Settings struct {
	// Listeners.
	GRPCAddr, HTTPAddr, AdminAddr string
	GRPCSocketMode                string
	DebugPprof                    bool

	// TLS of the gRPC and REST listeners.
	TLSCertFile, TLSKeyFile, TLSClientCAFile string
	SPIFFESocket                             string
	Plaintext                                bool

	// Atlas.
	AtlasURL, AtlasCAFile       string
	AtlasTimeout                time.Duration
	AtlasMaxCalls               int
	AtlasCertFile, AtlasKeyFile string

	// Callers.
	UserauthtokenFile, PolicyFile, OIDCCAFile string

	// Browsers.
	Docs        bool
	CORSOrigins []string

	// Caching.
	CacheTTL, CacheStaleIfError              time.Duration
	RedisURL, RedisCAFile, RedisPasswordFile string

	// Limits.
	MaxConnections, CallerRate int

	// Stopping.
	DrainDelay, DrainTimeout time.Duration

	// Logging.
	LogLevel, LogFormat, AuditFile string

	// Dev is set by tokend dev: there is one replica, and lines of text in the log are short.
	Dev bool
}

// wantsTLS reports whether the settings ask for TLS.
func (set *Settings) wantsTLS() bool {
	return set.TLSCertFile != "" || set.TLSKeyFile != "" || set.TLSClientCAFile != "" || set.SPIFFESocket != ""
}

// asksForCertificates reports whether callers are asked for client certificates.
func (set *Settings) asksForCertificates() bool {
	return set.TLSClientCAFile != "" || set.SPIFFESocket != ""
}

// LogFormats and LogLevels are the values that the settings can have.
var (
	LogFormats = []string{"auto", "text", "json"}
	LogLevels  = []string{"debug", "info", "warn", "error"}
)

// Log returns a logger to w, which never waits for w, and the sink between them. A level or format
// that does not exist is the default; Open reports it.
func (set *Settings) Log(w io.Writer, environ []string) (*slog.Logger, *sink.Sink) {
	var level slog.Level // info
	_ = level.UnmarshalText([]byte(set.LogLevel))
	opts := &slog.HandlerOptions{Level: level}
	terminal := isTerminal(w)
	text := set.LogFormat == "text" || set.LogFormat != "json" && terminal
	return sink.ForLog(w, func(w io.Writer) slog.Handler {
		var handler slog.Handler = slog.NewJSONHandler(w, opts)
		if text && set.Dev {
			opts.ReplaceAttr = shorten
			if terminal && config.Lookup(environ, "NO_COLOR") == "" {
				w = colorLevels{w}
			}
		}
		if text {
			handler = slog.NewTextHandler(w, opts)
		}
		log, _ := lograte.Limit(slog.New(handler)) // the server adds the metric to its own
		return log.Handler()
	})
}

// shorten leaves out what few need to read on a terminal.
func shorten(groups []string, a slog.Attr) slog.Attr {
	switch {
	case a.Value.Kind() == slog.KindString && a.Value.String() == "":
		return slog.Attr{}
	case len(groups) > 0:
		return a
	}
	switch a.Key {
	case slog.TimeKey:
		return slog.String(a.Key, a.Value.Time().Format(time.TimeOnly))
	case "request_id", "duration_ms", "transport", "peer", "user_agent", "code":
		return slog.Attr{}
	case "method":
		method := a.Value.String()
		return slog.String(a.Key, strings.TrimPrefix(method, "/"+ephemeraltokenv1.EphemeralTokenService_ServiceDesc.ServiceName+"/"))
	}
	return a
}

// colorLevels colors the level in each line of slog's TextHandler.
type colorLevels struct{ io.Writer }

var levelColors = strings.NewReplacer(
	"level=DEBUG", "\x1b[2mlevel=DEBUG\x1b[0m",
	"level=INFO", "\x1b[32mlevel=INFO\x1b[0m",
	"level=WARN", "\x1b[33mlevel=WARN\x1b[0m",
	"level=ERROR", "\x1b[31mlevel=ERROR\x1b[0m",
)

func (c colorLevels) Write(line []byte) (int, error) {
	_, err := io.WriteString(c.Writer, levelColors.Replace(string(line)))
	return len(line), err
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&fs.ModeCharDevice != 0
}

// checkSocketURL returns an error if addr is the URL of a socket file whose path is too long.
func checkSocketURL(addr string) error {
	u, err := url.Parse(addr)
	if err != nil || u.Scheme != "unix" {
		return nil //nolint:nilerr // reported where the URL is used
	}
	return listen.CheckPath(u.Path)
}

// checkChoice reports a value that is not among the choices.
func (s *Setup) checkChoice(flag, value string, choices []string) {
	if !slices.Contains(choices, value) {
		s.wrong(flag, fmt.Errorf("%q: must be one of %v", value, choices))
	}
}

// checkAboveZero reports a zero, which a package would take for its default.
func (s *Setup) checkAboveZero(flag string, d time.Duration) {
	if d == 0 {
		s.wrong(flag, fmt.Errorf("%v: must be above zero, such as 500ms or 10s", d))
	}
}

// socketMode returns the mode of gRPC's socket file.
func (s *Setup) socketMode() fs.FileMode {
	const flag, private, othersMayWrite = "--grpc-socket-mode", 0o600, 0o002
	mode, err := strconv.ParseUint(s.Settings.GRPCSocketMode, 8, 32)
	switch {
	case err != nil || mode&^0o666 != 0 || mode&private != private:
		s.wrong(flag, fmt.Errorf("%q: must be octal, with read and write for the owner, such as 0600 or 0660", s.Settings.GRPCSocketMode))
	case !listen.IsSocket(s.Settings.GRPCAddr) && mode != private:
		s.wrong(flag, errors.New("it would be ignored, since --grpc-addr is not unix:/path"))
	case mode&othersMayWrite != 0:
		s.warn(Warning{flag, fmt.Sprintf("every user of this machine can connect to gRPC's socket, mode %v", fs.FileMode(mode))})
	}
	return fs.FileMode(mode)
}
