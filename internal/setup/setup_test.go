package setup

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/config"
	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
	"github.com/ForstaLabs/ephemeral-token-service/internal/spiffe"
	"github.com/ForstaLabs/ephemeral-token-service/internal/spiffe/spiffetest"
)

// TestNoSVID checks that a start without an SVID ends with what to do about it.
func TestNoSVID(t *testing.T) {
	t.Parallel()
	refuses := spiffetest.NewAgent(t)
	refuses.Start()
	silent := spiffetest.NewAgent(t)
	silent.BeSilent()
	silent.Start()
	for name, test := range map[string]struct{ addr, want string }{
		"no agent":       {spiffetest.NewAgent(t).Addr(), `the SPIFFE agent cannot be reached: .*no such file or directory.*\. Start the agent, `},
		"not registered": {refuses.Addr(), `the SPIFFE agent has no registration entry for this workload: no identity issued\. Make a registration entry `},
		"silent":         {silent.Addr(), `the SPIFFE agent does not answer\. Check the agent's log`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := slog.New(slog.DiscardHandler)
			s := &Setup{log: log, svid: spiffe.New(test.addr, &reload.Watcher{Logger: log}, log)}
			// The agent has to answer in time, so a busy machine needs more of it.
			for wait := 500 * time.Millisecond; ; wait *= 2 {
				stop, err := s.awaitSVID(t.Context(), wait)
				stop()
				if err != nil && regexp.MustCompile(`^--spiffe-socket: no X\.509-SVID within `+wait.String()+`: `+test.want).MatchString(err.Error()) {
					break
				}
				if wait > 10*time.Second {
					t.Fatalf("got %v", err)
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			stop, err := s.awaitSVID(ctx, time.Hour)
			stop()
			if err != nil {
				t.Errorf("a stop while it waits: %v", err)
			}
		})
	}
}

// TestFieldFlags checks that all fields of a server.Config that an operator can set wrong are named
// by flags.
func TestFieldFlags(t *testing.T) {
	t.Parallel()
	s := Open(Settings{
		GRPCAddr: "x", HTTPAddr: "unix:/x", AdminAddr: "127.0.0.1:x", GRPCSocketMode: "0600", MaxConnections: 1 << 30, CORSOrigins: []string{" *"}, Docs: true,
		AtlasURL: "https://atlas.example/v1", AtlasTimeout: time.Second, DrainTimeout: time.Second, CacheStaleIfError: time.Second, RedisURL: "http://x",
		LogLevel: "info", LogFormat: "auto",
	}, Options{Logger: slog.New(slog.DiscardHandler), Trial: true})
	defer s.Close()
	var fields []string
	for _, err := range s.Errors {
		fields = append(fields, config.As(err).Field)
	}
	got := strings.Join(fields, " ")
	for _, flag := range []string{"--grpc-addr", "--http-addr", "--admin-addr", "--max-connections", "--cors-origin", "--cache-stale-if-error", "--cache-redis-url"} {
		if !strings.Contains(got, flag) {
			t.Errorf("no error about %s: %s", flag, s.Err())
		}
	}
	for _, field := range fields {
		if !strings.HasPrefix(field, "--") {
			t.Errorf("%s is not a flag", field)
		}
	}
	for field := range fieldFlags {
		wrapped := nameFlags(errors.Join(&config.Error{Field: field, Err: errors.New("x"), MayPass: true}))
		if e := config.As(wrapped[0]); !strings.HasPrefix(e.Field, "--") || !e.MayPass {
			t.Errorf("%s becomes %+v", field, e)
		}
	}
}

// TestFault95BOM checks that a byte order mark is not part of a secret, a password or a policy.
func TestFault95BOM(t *testing.T) {
	t.Parallel()
	write := func(name, content string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte("\ufeff"+content+"\r\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	s := Open(Settings{
		HTTPAddr: "127.0.0.1:0", GRPCSocketMode: "0600", AtlasURL: "https://atlas.example/v1", AtlasTimeout: time.Second, DrainTimeout: time.Second,
		PolicyFile: write("policy.yaml", "callers: [{atlas_jwt: true, allow: [CreateToken], profile: passthrough}]"),
		CacheTTL:   time.Second, RedisURL: "redis://127.0.0.1:1", RedisPasswordFile: write("password", "of Redis"),
		LogLevel: "info", LogFormat: "auto",
	}, Options{Logger: slog.New(slog.DiscardHandler), Trial: true})
	defer s.Close()
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	if got := s.Config.Cache.Redis.Password(); got != "of Redis" {
		t.Errorf("the password is %q", got)
	}
	value, err := reload.New(reload.Files[string]{Paths: []string{write("secret", "planted")}, Parse: func(contents [][]byte) (string, error) {
		secret, err := parseSecret(contents)
		return string(secret), err
	}})
	if err != nil || value.Get() != "planted" {
		t.Errorf("the secret is read with its mark, or not: %v", err)
	}
	for _, content := range []string{"\ufeffplanted", "planted\ufeff", "plan\u200bted", "plan\xa0ted", "plan ted", "plan\x1bted", "\n"} {
		if _, err := parseSecret([][]byte{[]byte(content)}); err == nil {
			t.Errorf("%q is taken for a secret", content)
		}
	}
}

// TestBuild checks the version line and the metric of a release.
func TestBuild(t *testing.T) {
	t.Parallel()
	b := Build{Version: "v1.2.3", Commit: "0123456789ab", Date: "2026-01-02T03:04:05Z"}
	if got := b.String(); !regexp.MustCompile(`^v1\.2\.3 \(commit 0123456789ab of 2026-01-02T03:04:05Z\) go1\.\S+ \w+/\w+$`).MatchString(got) {
		t.Error(got)
	}
	if got := b.userAgent(); !strings.HasPrefix(got, "ephemeral-token-service/v1.2.3 ") {
		t.Error(got)
	}
}

// TestProxy checks which proxies are reported, without their passwords.
func TestProxy(t *testing.T) {
	t.Parallel()
	for value, ok := range map[string]bool{
		"": true, "http://proxy.internal:3128": true, "http://user:planted@proxy:3128": true, "proxy.internal:3128": true,
		"socks5://proxy.internal:1080": true, "http://user:planted%zz@proxy": false, "ftp://user:planted@proxy": false, "http://": false,
	} {
		for _, name := range []string{"HTTPS_PROXY", "https_proxy"} {
			s := &Setup{opts: Options{Environ: []string{"A=b", name + "=" + value}}}
			s.checkProxy()
			if err := s.Err(); (err == nil) != ok || err != nil && strings.Contains(err.Error(), "planted") {
				t.Errorf("%s=%s: %v", name, value, err)
			}
		}
	}
}

// TestGRPCWarnings checks which lines of grpc-go are logged.
func TestGRPCWarnings(t *testing.T) {
	var log strings.Builder
	routeGRPCLog(slog.New(slog.NewTextHandler(&log, nil)))
	for _, line := range []string{"a line with metadata", `failed to write status: connection error: desc = "transport is closing"`, "something else"} {
		if _, err := io.WriteString(grpcWarnings{}, line+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "something else") {
		t.Errorf("got %s", got)
	}
}
