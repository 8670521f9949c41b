package setup

import (
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
)

// openCache reads the files of the cache's settings. Package tokencache checks the rest.
func (s *Setup) openCache() {
	set := &s.Settings
	s.Config.Cache = tokencache.Config{TTL: set.CacheTTL, StaleIfError: set.CacheStaleIfError}
	if set.RedisURL != "" {
		s.openRedis()
		return
	}
	for flag, value := range map[string]string{"--cache-redis-ca-file": set.RedisCAFile, "--cache-redis-password-file": set.RedisPasswordFile} {
		if value != "" {
			s.wrong(flag, errors.New("it would be ignored without --cache-redis-url"))
		}
	}
}

func (s *Setup) openRedis() {
	set := &s.Settings
	redis := &tokencache.RedisConfig{URL: set.RedisURL}
	s.Config.Cache.Redis = redis
	s.wrong("--cache-redis-url", checkSocketURL(set.RedisURL))
	if set.RedisCAFile != "" && !strings.HasPrefix(set.RedisURL, "rediss://") {
		s.wrong("--cache-redis-ca-file", errors.New("it would be ignored, since --cache-redis-url is not rediss://"))
	} else {
		redis.RootCAs = s.authorities("--cache-redis-ca-file", "redis_ca", set.RedisCAFile, x509.SystemCertPool, nil)
	}
	if set.RedisPasswordFile == "" {
		return
	}
	log := s.log.With(slog.String("file", set.RedisPasswordFile))
	password, err := reload.Watch(s.files, reload.Files[string]{
		Paths: []string{set.RedisPasswordFile}, What: "redis_password", Parse: parsePassword, Logger: log,
		OnChange: func(string) { log.Info("password of Redis replaced") },
	})
	if err != nil {
		s.unusableSecret("--cache-redis-password-file", set.RedisPasswordFile, err)
	}
	s.warnIfPublic("--cache-redis-password-file", set.RedisPasswordFile)
	redis.Password = password
}

// parsePassword returns the password in a file: one line, which may have spaces in it.
func parsePassword(contents [][]byte) (string, error) {
	password := strings.TrimRight(string(contents[0]), "\r\n")
	if password == "" || strings.ContainsAny(password, "\r\n\x00") {
		return "", errors.New("it must contain the password, on one line, and nothing else")
	}
	return password, nil
}
