package tokencache

import (
	"cmp"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/ForstaLabs/ephemeral-token-service/internal/config"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redis"
)

// RedisConfig configures the Redis or Valkey that replicas share.
type RedisConfig = redis.Config

// Config configures sharing and caching. The zero value shares calls and caches nothing.
type Config struct {
	// TTL is how long a token is cached after Atlas was asked for it, and never beyond the exp of
	// the JWT that Atlas accepted. 0: nothing is cached.
	TTL time.Duration
	// StaleIfError is how much longer a token is kept, to be served only when Atlas fails: never
	// after a delete, nor after Atlas has answered 401 or 403. 0: it is not kept.
	StaleIfError time.Duration
	// Redis is the cache that replicas share. If nil, the cache is in this process, which is
	// correct for one replica only: another replica would go on returning a token that was deleted
	// here.
	Redis *RedisConfig
	// CallTimeout bounds a shared call, and a delete. Default 30 s. It should not be less than the
	// time that a caller may take.
	CallTimeout time.Duration
	// SettleTime is how long nothing is cached for an org after a delete with an unknown outcome,
	// because Atlas may still carry it out. Default 30 s.
	SettleTime time.Duration
	// Registerer gets the metrics. If nil, there are none.
	Registerer prometheus.Registerer
	// Tracer makes a span for each shared call. If nil, there are none.
	Tracer trace.Tracer
	// Logger gets a line when Redis fails, and one when it answers again. If nil, there are none.
	Logger *slog.Logger
}

func (c *Config) setDefaults() {
	c.CallTimeout = cmp.Or(c.CallTimeout, 30*time.Second)
	c.SettleTime = cmp.Or(c.SettleTime, 30*time.Second)
}

// Validate reports every mistake in c, each a *config.Error, joined. It connects to nothing.
func (c Config) Validate() error {
	errs := []error{
		config.CheckDuration("Cache.TTL", c.TTL),
		config.CheckDuration("Cache.StaleIfError", c.StaleIfError),
		config.CheckDuration("Cache.CallTimeout", c.CallTimeout),
		config.CheckDuration("Cache.SettleTime", c.SettleTime),
	}
	wrong := func(field, reason string) { errs = append(errs, config.Wrong(field, errors.New(reason))) }
	if c.TTL == 0 && c.Redis != nil {
		wrong("Cache.Redis.URL", "nothing would be cached there: set a TTL too")
	}
	if c.TTL == 0 && c.StaleIfError > 0 {
		wrong("Cache.StaleIfError", "nothing would be cached: set a TTL too")
	}
	if c.Redis != nil {
		errs = append(errs, c.Redis.Validate())
	}
	return errors.Join(errs...)
}
