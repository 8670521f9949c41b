package tokencache

import (
	"context"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redis"
)

// redisStore is the cache in Redis, for all replicas.
type redisStore struct {
	*redis.Store

	items *recent[*redis.Item] // whose derivation is a tenth of the work of a read
}

// maxItems bounds the derived keys that are kept: about a kilobyte each.
const maxItems = 2048

func newRedisStore(cfg Config) (*redisStore, error) {
	o := *cfg.Redis
	o.TTL, o.StaleIfError, o.CallTimeout, o.SettleTime = cfg.TTL, cfg.StaleIfError, cfg.CallTimeout, cfg.SettleTime
	o.Registerer, o.Logger = cfg.Registerer, cfg.Logger
	s, err := redis.New(o)
	if err != nil {
		return nil, err
	}
	return &redisStore{s, newRecent[*redis.Item](maxItems)}, nil
}

func (s *redisStore) item(r request) *redis.Item {
	return s.items.of(r.key, func() *redis.Item {
		return redis.NewItem(r.claims.OrgID, derive(r.cred, "name", 16), derive(r.cred, "seal", 32))
	})
}

func (s *redisStore) Get(ctx context.Context, r request) (Result, snapshot) {
	if r.claims.OrgID == "" {
		return Result{}, snapshot{} // no org, no fence
	}
	found, before := s.Store.Get(ctx, s.item(r))
	if found.Token == "" {
		return Result{}, snapshot{redis: before}
	}
	return cached(atlas.Token(found.Token), r.claims.OrgID, found.Age, found.TTL), snapshot{redis: before}
}

func (*redisStore) Release(snapshot) {}

func (s *redisStore) Put(ctx context.Context, before snapshot, r request, token atlas.Token, life time.Duration) {
	s.Store.Put(ctx, before.redis, s.item(r), string(token), life)
}

func (s *redisStore) Drop(ctx context.Context, r request) { s.Store.Drop(ctx, s.item(r)) }
