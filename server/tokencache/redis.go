package tokencache

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"strconv"
	"time"

	"github.com/redis/rueidis"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// redisStore remembers in Redis or Valkey, for all replicas. Nothing of it is kept in this process: a copy could be read
// after its fence has moved.
//
// Whoever cannot reach Redis does without. For a create that means to ask Atlas. A delete that could not move the fence is
// not acknowledged before every copy must have expired; until then it goes on trying.
type redisStore struct {
	client             *redisClient
	metrics            *metrics
	ttl, stale, settle time.Duration
	holdTime           time.Duration // longer than any delete takes, so that one whose replica has died ends too
	keepFences         time.Duration // longer than any call takes; a value keeps those that it needs

	lateMoves, lateDrops *retries
}

func newRedisStore(cfg Config, m *metrics) (*redisStore, error) {
	options, err := cfg.Redis.options()
	if err != nil {
		return nil, err
	}
	client := newRedisClient(options, cmp.Or(cfg.Redis.Budget, redisBudget), m, cfg.Logger)
	return &redisStore{
		client: client, metrics: m,
		ttl: cfg.TTL, stale: cfg.StaleIfError, settle: cfg.SettleTime,
		holdTime:   cfg.CallTimeout + cfg.SettleTime,
		keepFences: cfg.CallTimeout + cfg.SettleTime + 10*time.Second,
		lateMoves:  newRetries(client, maxLateMoves), lateDrops: newRetries(client, maxLateDrops),
	}, nil
}

// redisView is where the fences stood.
type redisView struct {
	now      int64 // ms, Redis's clock
	all, org epoch
}

func newEpoch() string {
	var b [epochLen / 2]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func orgKey(org string) string {
	if org == "" {
		return keyAll
	}
	return keyOrgPrefix + publicID("org", org)
}

func tokenKey(cred atlas.Credential) string {
	return keyTokenPrefix + hex.EncodeToString(derive(cred, "name", 16))
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

func (s *redisStore) get(_ context.Context, r request) (found, view) {
	org := r.org()
	if org == "" {
		return found{}, view{} // there is no fence to stand behind
	}
	name := tokenKey(r.cred)
	message, err := s.client.run("look", scriptLook, []string{keyAll, orgKey(org), name},
		[]string{newEpoch(), milliseconds(s.keepFences)})
	if err != nil {
		return found{}, view{}
	}
	at := time.Now() // after Redis looked at its clock, so what is reckoned from both is too early rather than too late
	seen, value, held, err := readLook(message)
	if err != nil {
		return found{}, view{}
	}
	if held {
		seen.all, seen.org = "", "" // no fence stands there
	}
	v := view{at: at, redis: seen}
	if value == nil {
		return found{}, v
	}
	token, header, err := open(value, r.cred, name, seen.now, seen.all, seen.org)
	if err != nil {
		s.metrics.rejected.WithLabelValues(rejectedFor(err)).Inc()
		return found{}, v
	}
	f := found{token, org, sinceThen(header.since, seen.now), sinceThen(seen.now, header.fresh)}
	if f.age >= s.ttl+s.stale { // it was stored under a longer TTL than ours
		return found{}, v
	}
	f.ttl = min(f.ttl, s.ttl-f.age)
	return f, v
}

func sinceThen(then, now int64) time.Duration { return time.Duration(now-then) * time.Millisecond }

func rejectedFor(err error) string {
	switch {
	case errors.Is(err, errMoved):
		return rejectedMoved
	case errors.Is(err, errExpired):
		return rejectedExpired
	}
	return rejectedSeal
}

var errScriptAnswer = errors.New("the script's answer is not what it should be")

// readLook takes the answer of scriptLook apart.
func readLook(m rueidis.RedisMessage) (v redisView, value []byte, held bool, err error) {
	fields, err := m.ToArray()
	if err != nil || len(fields) < 4 {
		return v, nil, false, errScriptAnswer
	}
	now, err1 := fields[0].AsInt64()
	all, err2 := fields[1].ToString()
	org, err3 := fields[2].ToString()
	isHeld, err4 := fields[3].AsInt64()
	if errors.Join(err1, err2, err3, err4) != nil || len(all) != epochLen || len(org) != epochLen {
		return v, nil, false, errScriptAnswer
	}
	if len(fields) > 4 && !fields[4].IsNil() {
		if value, err = fields[4].AsBytes(); err != nil {
			return v, nil, false, errScriptAnswer
		}
	}
	return redisView{now, epoch(all), epoch(org)}, value, isHeld != 0, nil
}

func (s *redisStore) put(_ context.Context, v view, r request, token atlas.Token, life time.Duration) {
	if v.redis.now == 0 {
		return // it is in trouble
	}
	since := v.redis.now
	end := since + (time.Since(v.at) + min(life, 1000*time.Hour)).Milliseconds()
	header := sealed{
		since: since, fresh: min(since+s.ttl.Milliseconds(), end), until: min(since+(s.ttl+s.stale).Milliseconds(), end),
		all: v.redis.all, org: v.redis.org,
	}
	name := tokenKey(r.cred)
	value := header.seal(r.cred, name, token)
	_, _ = s.client.run("put", scriptPut, []string{keyAll, orgKey(r.org()), name}, []string{
		string(header.all), string(header.org), publicID("token "+r.org(), string(token)), string(value),
		strconv.FormatInt(header.until, 10), newEpoch(), milliseconds(s.keepFences),
	}) // if it fails, nothing is remembered, and the client has reported it
}

func (s *redisStore) check() error { return s.client.health.check() }
func (s *redisStore) close()       { s.client.close() }
