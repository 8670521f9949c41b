package main

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/server/reload"
	"github.com/ForstaLabs/ephemeral-token-service/server/tokencache"
)

// cacheFlags say what is remembered, and where.
type cacheFlags struct {
	TTL, StaleIfError                        time.Duration
	RedisURL, RedisCAFile, RedisPasswordFile string
}

func (f *cacheFlags) declare(flags flags) {
	flags.duration(&f.TTL, "cache-ttl", "0", "Remember a token for so long; 0 remembers nothing. Without --cache-redis-url that is right for one replica only.")
	flags.duration(&f.StaleIfError, "cache-stale-if-error", "0", "Keep a token for so much longer, to hand it out when Atlas fails; never across a delete.")
	flags.text(&f.RedisURL, "cache-redis-url", "", "URL", "Redis or Valkey in which replicas remember together: redis://HOST:PORT, rediss:// for TLS, or unix:///PATH. ?master_set=NAME is for Sentinel, ?addr=HOST:PORT for more sentinels or nodes of a cluster.")
	flags.file(&f.RedisCAFile, "cache-redis-ca-file", "Authorities to trust for rediss:// beside the system's, PEM. A replaced file is picked up.")
	flags.file(&f.RedisPasswordFile, "cache-redis-password-file", "File with the password of Redis, which its sentinels are given as well. A replaced file is picked up.")
}

// config is what the flags mean, or the validation errors, but for those that tokencache finds.
func (f *cacheFlags) config(log *slog.Logger) (tokencache.Config, upkeep, []error) {
	var (
		files upkeep
		errs  []error
		cfg   = tokencache.Config{TTL: f.TTL, StaleIfError: f.StaleIfError}
	)
	if f.RedisURL != "" {
		cfg.Redis = &tokencache.RedisConfig{URL: f.RedisURL}
		errs = flatten(f.openRedisCA(&files, cfg.Redis, log), f.openRedisPassword(&files, cfg.Redis, log))
		return cfg, files, errs
	}
	if f.RedisCAFile != "" {
		errs = append(errs, errors.New("--cache-redis-ca-file: without --cache-redis-url it would be ignored"))
	}
	if f.RedisPasswordFile != "" {
		errs = append(errs, errors.New("--cache-redis-password-file: without --cache-redis-url it would be ignored"))
	}
	return cfg, files, errs
}

func (f *cacheFlags) openRedisCA(files *upkeep, cfg *tokencache.RedisConfig, log *slog.Logger) error {
	switch {
	case f.RedisCAFile == "":
		return nil
	case !strings.HasPrefix(f.RedisURL, "rediss://"):
		return errors.New("--cache-redis-ca-file: it would be ignored, since --cache-redis-url is not rediss://")
	}
	roots, err := files.openCAs("cache-redis-ca-file", "redis_ca", f.RedisCAFile, nil, log)
	if err != nil {
		return err
	}
	cfg.RootCAs = roots.Get
	return nil
}

func (f *cacheFlags) openRedisPassword(files *upkeep, cfg *tokencache.RedisConfig, log *slog.Logger) error {
	if f.RedisPasswordFile == "" {
		return nil
	}
	log = log.With(slog.String("file", f.RedisPasswordFile))
	password, err := reload.New([]string{f.RedisPasswordFile}, parsePassword, func(string) { log.Info("password of Redis replaced") },
		reload.Report(log, "password of Redis"))
	if err != nil {
		return secretFileError("cache-redis-password-file", f.RedisPasswordFile, err)
	}
	cfg.Password = password.Get
	files.keep(password)
	return nil
}

// parsePassword takes the password out of its file: one line, which may have spaces in it.
func parsePassword(contents [][]byte) (string, error) {
	password := strings.TrimRight(string(contents[0]), "\r\n")
	if password == "" || strings.ContainsAny(password, "\r\n\x00") {
		return "", errors.New("it must have the password in it, on one line, and nothing else")
	}
	return password, nil
}

// nameCacheFlag puts the flag's name in front of what tokencache finds wrong.
func nameCacheFlag(err error) error {
	var wrongURL *tokencache.RedisURLError
	switch {
	case errors.As(err, &wrongURL):
		return fmt.Errorf("--cache-redis-url: %w", err)
	case errors.Is(err, tokencache.ErrRedisWithoutTTL):
		return errors.New("--cache-redis-url: nothing would be remembered there: give --cache-ttl too")
	case errors.Is(err, tokencache.ErrStaleWithoutTTL):
		return errors.New("--cache-stale-if-error: nothing would be kept: give --cache-ttl too")
	}
	return err
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
