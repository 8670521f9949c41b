package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
)

// cacheFlags say what is remembered, and where.
type cacheFlags struct {
	TTL, StaleIfError                        time.Duration
	RedisURL, RedisCAFile, RedisPasswordFile string
}

func (f *cacheFlags) declare(flags flags) {
	flags = flags.about(aboutRemembering)
	flags.duration(&f.TTL, false, "cache-ttl", "0", "Remember a token for so long; 0 remembers nothing. Without --cache-redis-url that is right for one replica only.")
	flags.duration(&f.StaleIfError, false, "cache-stale-if-error", "0", "Keep a token for so much longer, to hand it out when Atlas fails; never across a delete.")
	flags.text(&f.RedisURL, "cache-redis-url", "", "URL", "Redis or Valkey in which replicas remember together: redis://HOST:PORT, rediss:// for TLS, or unix:///PATH. ?master_set=NAME is for Sentinel, ?addr=HOST:PORT for more sentinels or nodes of a cluster.")
	flags.file(&f.RedisCAFile, "cache-redis-ca-file", "Authorities to trust for rediss:// beside the system's, PEM. A replaced file is picked up.")
	flags.file(&f.RedisPasswordFile, "cache-redis-password-file", "File with the password of Redis, which its sentinels are given as well. A replaced file is picked up.")
}

// open reads the files. What else is wrong, tokencache finds.
func (f *cacheFlags) open(s *setup) {
	s.Cache = tokencache.Config{TTL: f.TTL, StaleIfError: f.StaleIfError}
	if f.RedisURL != "" {
		s.Cache.Redis = &tokencache.RedisConfig{URL: f.RedisURL}
		f.openRedis(s)
		return
	}
	ignored := errors.New("without --cache-redis-url it would be ignored")
	if f.RedisCAFile != "" {
		s.fail("--cache-redis-ca-file", ignored)
	}
	if f.RedisPasswordFile != "" {
		s.fail("--cache-redis-password-file", ignored)
	}
}

func (f *cacheFlags) openRedis(s *setup) {
	if f.RedisCAFile != "" && !strings.HasPrefix(f.RedisURL, "rediss://") {
		s.fail("--cache-redis-ca-file", errors.New("it would be ignored, since --cache-redis-url is not rediss://"))
	} else {
		s.Cache.Redis.RootCAs = s.authorities("--cache-redis-ca-file", "redis_ca", f.RedisCAFile, x509.SystemCertPool, nil)
	}
	if f.RedisPasswordFile == "" {
		return
	}
	log := s.Logger.With(slog.String("file", f.RedisPasswordFile))
	password, err := reload.Watch(s.files, reload.Files[string]{
		Paths: []string{f.RedisPasswordFile}, What: "redis_password", Parse: parsePassword, Logger: log,
		OnChange: func(string) { log.Info("password of Redis replaced") },
	})
	if err != nil {
		s.failSecret("--cache-redis-password-file", f.RedisPasswordFile, err)
	}
	s.warnIfPublic("--cache-redis-password-file", f.RedisPasswordFile)
	s.Cache.Redis.Password = password
}

// parsePassword takes the password out of its file: one line, which may have spaces in it.
func parsePassword(contents [][]byte) (string, error) {
	password := strings.TrimRight(string(contents[0]), "\r\n")
	if password == "" || strings.ContainsAny(password, "\r\n\x00") {
		return "", errors.New("it must have the password in it, on one line, and nothing else")
	}
	return password, nil
}

// describeCache says in words what is remembered.
func describeCache(cfg tokencache.Config) string {
	switch {
	case cfg.TTL == 0:
		return "Calls for the same token are shared. No token is remembered.\n"
	case cfg.Redis != nil:
		return fmt.Sprintf("Tokens are remembered for %v, in Redis, by all replicas together.\n", cfg.TTL)
	}
	return fmt.Sprintf("Tokens are remembered for %v, in this process. %s\n", cfg.TTL, oneReplicaOnly)
}

// oneReplicaOnly is what cannot be checked from inside one process.
const oneReplicaOnly = "That is right for one replica only: another would go on handing out a token that was deleted here. Give --cache-redis-url for more."
