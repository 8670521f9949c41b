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
	TTL          string `name:"cache-ttl" default:"0" placeholder:"DURATION" help:"Remember a token for so long; 0 remembers nothing. Without --cache-redis-url that is right for one replica only."`
	StaleIfError string `name:"cache-stale-if-error" default:"0" placeholder:"DURATION" help:"Keep a token for so much longer, to hand it out when Atlas fails; never across a delete."`
	RedisURL     string `name:"cache-redis-url" placeholder:"URL" help:"Redis or Valkey in which replicas remember together: redis://HOST:PORT, rediss:// for TLS, or unix:///PATH. ?master_set=NAME is for Sentinel, ?addr=HOST:PORT for more sentinels or nodes of a cluster."`
	RedisCAFile  string `name:"cache-redis-ca-file" placeholder:"FILE" help:"Authorities to trust for rediss:// beside the system's, PEM. A replaced file is picked up."`

	RedisPasswordFile string `name:"cache-redis-password-file" placeholder:"FILE" help:"File with the password of Redis, which its sentinels are given as well. A replaced file is picked up."`
}

// config is what the flags mean, or the mistakes in them, but for those that tokencache finds.
func (f cacheFlags) config(log *slog.Logger) (tokencache.Config, upkeep, []error) {
	var files upkeep
	ttl, ttlErr := notNegativeDuration("cache-ttl", f.TTL)
	stale, staleErr := notNegativeDuration("cache-stale-if-error", f.StaleIfError)
	errs := flatten(ttlErr, staleErr)
	if ttlErr != nil {
		ttl = time.Second // any: it is given, and wrong, so nobody needs to hear that it is missing
	}
	cfg := tokencache.Config{TTL: ttl, StaleIfError: stale}
	if f.RedisURL != "" {
		cfg.Redis = &tokencache.RedisConfig{URL: f.RedisURL}
		errs = append(errs, flatten(f.openRedisCA(&files, cfg.Redis, log), f.openRedisPassword(&files, cfg.Redis, log))...)
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

func (f cacheFlags) openRedisCA(files *upkeep, cfg *tokencache.RedisConfig, log *slog.Logger) error {
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

func (f cacheFlags) openRedisPassword(files *upkeep, cfg *tokencache.RedisConfig, log *slog.Logger) error {
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

func notNegativeDuration(flag, value string) (time.Duration, error) {
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("--%s: %q is not a duration such as 30s or 5m, or 0", flag, value)
	}
	return d, nil
}
