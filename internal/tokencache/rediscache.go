package tokencache

import (
	"context"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redis"
)

// RedisConfig configures the Redis or Valkey that replicas share.
type RedisConfig = redis.Config

// redisStore is the cache in Redis, for all replicas.
type redisStore struct {
	redis *redis.Store
	items *recent[*redis.Item]
}

// maxItems bounds the derived keys that are kept: about a kilobyte each.
const maxItems = 2048

func newRedisStore(cfg Config) (*redisStore, error) {
	s, err := redis.New(*cfg.Redis, redis.Options{
		TTL: cfg.TTL, Stale: cfg.StaleIfError, CallTimeout: cfg.CallTimeout, SettleTime: cfg.SettleTime,
		Registerer: cfg.Registerer, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	return &redisStore{s, newRecent[*redis.Item](maxItems)}, nil
}

func (s *redisStore) item(r request) *redis.Item {
	return s.items.of(r.key, func() *redis.Item {
		return redis.NewItem(r.org(), derive(r.cred, "name", 16), derive(r.cred, "seal", 32))
	})
}

func (s *redisStore) get(ctx context.Context, r request) (found, view) {
	if r.org() == "" {
		return found{}, view{} // no org, no fence
	}
	f, v := s.redis.Get(ctx, s.item(r))
	return found{atlas.Token(f.Token), r.org(), f.Age, f.TTL}, view{redis: v}
}

func (*redisStore) release(view) {}

func (s *redisStore) put(ctx context.Context, v view, r request, token atlas.Token, life time.Duration) {
	s.redis.Put(ctx, v.redis, s.item(r), string(token), life)
}

func (s *redisStore) invalidate(ctx context.Context, r request) { s.redis.Drop(ctx, s.item(r)) }
func (s *redisStore) check() error                              { return s.redis.Check() }
func (s *redisStore) close()                                    { s.redis.Close() }

func (s *redisStore) deletion(org string) deletion { return redisDeletion{s.redis.Deletion(org)} }

type redisDeletion struct{ *redis.Deletion }

func (d redisDeletion) begin(context.Context) { d.Begin() }

func (d redisDeletion) end(ctx context.Context, how outcome) error {
	if err := d.End(ctx, how); err != nil {
		return &UnsettledError{err}
	}
	return nil
}
