package tokencache

import (
	"cmp"
	"context"
	"strings"
	"time"
)

// RedisProbe looks whether a Redis would do as a cache, without a cache.
type RedisProbe struct {
	client *redisClient
	budget time.Duration
}

// Probe returns what looks at c's Redis. It connects to nothing yet. It is to be closed; ctx ends whatever it does.
func (c *RedisConfig) Probe(ctx context.Context) (*RedisProbe, error) {
	options, err := c.options()
	if err != nil {
		return nil, err
	}
	return &RedisProbe{makeRedisClient(ctx, options), cmp.Or(c.Budget, redisBudget)}, nil
}

// Connect connects and logs in, by way of the sentinels if there are some. No error has a password in it, nor an answer of Redis
// beyond its first word, such as WRONGPASS.
func (p *RedisProbe) Connect() error {
	if _, err := p.client.reach(""); err != nil {
		return redisCause(p.client.explain(err))
	}
	return nil
}

// probeRuns is how often a script is run: a machine that is busy for a moment says nothing about Redis.
const probeRuns = 5

// Run has Redis carry out two of the cache's scripts on a key that expires by itself, and returns how long the fastest took on a
// connection that was there. Connect must have succeeded.
func (p *RedisProbe) Run() (fastest time.Duration, err error) {
	keys := []string{keyOrgPrefix + "probe-" + newEpoch()}
	if _, err := p.client.run(redisTimeout, scriptMove, keys, []any{newEpoch(), "hold:probe", 0, time.Second.Milliseconds()}); err != nil {
		return 0, redisCause(err)
	}
	fastest = redisTimeout
	for range probeRuns {
		start := time.Now()
		if _, err := p.client.run(redisTimeout, scriptDrop, keys, nil); err != nil {
			return 0, redisCause(err)
		}
		fastest = min(fastest, time.Since(start))
	}
	return fastest, nil
}

// Budget is how long a call waits for Redis before it goes on without.
func (p *RedisProbe) Budget() time.Duration { return p.budget }

// Addrs are the addresses that Redis, or its sentinels, are reached at.
func (p *RedisProbe) Addrs() string { return strings.Join(p.client.options.Addrs, ", ") }

// Close ends all connections.
func (p *RedisProbe) Close() { p.client.close() }
