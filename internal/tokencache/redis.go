package tokencache

import (
	"cmp"
	"context"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"strconv"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// redisStore is the cache in Redis or Valkey, for all replicas. Nothing is cached in this process as well: a copy could be
// read after its fence has moved.
//
// A create that cannot reach Redis goes to Atlas. A delete that cannot move the fence is not acknowledged before every copy
// must have expired; until then it goes on trying.
type redisStore struct {
	client             *redisClient
	metrics            *metrics
	derived            *memo[derived]
	ttl, stale, settle time.Duration
	holdTime           time.Duration // longer than any delete takes; ends the hold of a replica that was killed
	keepFences         time.Duration // longer than any call takes; fences live at least as long as the values behind them

	lateMoves, lateDrops chan struct{} // a slot for each that is tried again
}

func newRedisStore(cfg Config, m *metrics) (*redisStore, error) {
	options, err := cfg.Redis.options()
	if err != nil {
		return nil, err
	}
	client := newRedisClient(options, cmp.Or(cfg.Redis.Budget, redisBudget), m, cfg.Logger)
	return &redisStore{
		client: client, metrics: m, derived: newMemo[derived](maxDerived),
		ttl: cfg.TTL, stale: cfg.StaleIfError, settle: cfg.SettleTime,
		holdTime:   cfg.CallTimeout + cfg.SettleTime,
		keepFences: cfg.CallTimeout + cfg.SettleTime + 10*time.Second,
		lateMoves:  make(chan struct{}, maxLateMoves), lateDrops: make(chan struct{}, maxLateDrops),
	}, nil
}

// redisView has the epochs of the fences, and when they were read.
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

// derived is what Redis is used with for one credential.
type derived struct {
	orgKey, tokenKey string
	aead             cipher.AEAD
}

func (r request) derive() derived {
	return derived{orgKey(r.org()), tokenKey(r.cred), newAEAD(r.cred)}
}

// maxDerived bounds what is kept of that: about a kilobyte each.
const maxDerived = 2048

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

func (s *redisStore) get(ctx context.Context, r request) (found, view) {
	org := r.org()
	if org == "" {
		return found{}, view{} // no org, no fence
	}
	own := s.derived.of(r.key, r.derive)
	answer, err := s.client.look(ctx, []string{keyAll, own.orgKey, own.tokenKey},
		newEpoch(), milliseconds(s.keepFences))
	if err != nil {
		return found{}, view{}
	}
	at := time.Now() // after Redis read its clock, so that values expire early rather than late
	seen, value, held, err := readLook(answer)
	if err != nil {
		s.client.health.report(err)
		return found{}, view{}
	}
	if held {
		seen.all, seen.org = "", "" // which no fence has, so nothing is read or stored
	}
	v := view{at: at, redis: seen}
	if value == nil {
		return found{}, v
	}
	token, header, err := open(value, own.aead, own.tokenKey, seen.now, seen.all, seen.org)
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

// readLook parses the answer of scriptLook.
func readLook(answer any) (v redisView, value []byte, held bool, err error) {
	fields, _ := answer.([]any)
	if len(fields) != 5 {
		return v, nil, false, errMalformed
	}
	now, ok1 := fields[0].(int64)
	all, ok2 := fields[1].(string)
	org, ok3 := fields[2].(string)
	isHeld, ok4 := fields[3].(int64)
	stored, there := fields[4].(string)
	ok5 := there || fields[4] == nil
	if !(ok1 && ok2 && ok3 && ok4 && ok5) || len(all) != epochLen || len(org) != epochLen {
		return v, nil, false, errMalformed
	}
	if there {
		value = []byte(stored)
	}
	return redisView{now, epoch(all), epoch(org)}, value, isHeld != 0, nil
}

func (s *redisStore) put(ctx context.Context, v view, r request, token atlas.Token, life time.Duration) {
	if v.redis.now == 0 {
		return // Redis has not answered
	}
	since := v.redis.now
	end := since + (time.Since(v.at) + min(life, 1000*time.Hour)).Milliseconds()
	header := sealed{
		since: since, fresh: min(since+s.ttl.Milliseconds(), end), until: min(since+(s.ttl+s.stale).Milliseconds(), end),
		all: v.redis.all, org: v.redis.org,
	}
	own := s.derived.of(r.key, r.derive)
	value := header.seal(own.aead, own.tokenKey, token)
	_, _ = s.client.do(ctx, "put", usual, scriptPut, []string{keyAll, own.orgKey, own.tokenKey},
		string(header.all), string(header.org), publicID("token "+r.org(), string(token)), string(value),
		strconv.FormatInt(header.until, 10), newEpoch(), milliseconds(s.keepFences),
	) // if it fails, nothing is remembered, and the client has reported it
}

func (s *redisStore) check() error { return s.client.check() }
func (s *redisStore) close()       { s.client.close() }
