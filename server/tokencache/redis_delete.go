package tokencache

import (
	"context"
	"time"

	"github.com/redis/rueidis"
)

// scriptDrop forgets one value.
var scriptDrop = rueidis.NewLuaScript(`return redis.call('DEL', KEYS[1])`)

func (s *redisStore) drop(_ context.Context, _ key, cred Credential) {
	names := []string{tokenKey(cred)}
	if _, err := s.client.run("drop", scriptDrop, names, nil); err == nil {
		return
	}
	s.lateDrops.start(s.lifetime(), func() error {
		_, err := s.client.retry("drop", scriptDrop, names, nil)
		return err
	})
}

// lifetime is how long after now every copy must have expired that is there now. One percent and a bit is for clocks that
// do not run alike.
func (s *redisStore) lifetime() time.Duration {
	last := s.ttl + s.stale
	return last + last/100 + 100*time.Millisecond
}

func (s *redisStore) hold(_ context.Context, org string) hold {
	h := &redisHold{store: s, key: orgKey(org), field: "hold:" + newEpoch()}
	_ = h.move(s.client.insist, h.key, s.holdTime) // if it fails, what was stored is read until the end
	return h
}

// redisHold is a delete in progress.
type redisHold struct {
	store      *redisStore
	key, field string
}

// scriptRunner is redisClient.insist or redisClient.retry.
type scriptRunner func(name string, script *rueidis.Lua, keys, args []string) (rueidis.RedisMessage, error)

func (h *redisHold) move(run scriptRunner, key string, holdFor time.Duration) error {
	_, err := run("move", scriptMove, []string{key},
		[]string{newEpoch(), h.field, milliseconds(holdFor), milliseconds(h.store.keepFences)})
	return err
}

// finish makes the last move.
func (h *redisHold) finish(run scriptRunner, e ended) error {
	holdFor := time.Duration(0)
	if e.unknown {
		holdFor = h.store.settle
	}
	if e.everything {
		if err := h.move(run, keyAll, holdFor); err != nil {
			return err
		}
	}
	return h.move(run, h.key, holdFor)
}

func (h *redisHold) end(ctx context.Context, e ended) error {
	s := h.store
	if h.finish(s.client.insist, e) == nil {
		return nil
	}
	if !e.ok && !e.unknown {
		return nil // nothing was deleted, and a hold that was made ends by itself
	}
	// A copy that was stored before the delete took effect expires so long after that at the latest.
	last := s.lifetime()
	if e.unknown {
		last += s.settle
	}
	moved := s.lateMoves.start(last, func() error { return h.finish(s.client.retry, e) })
	if !e.ok {
		return nil // nobody is told that anything is deleted
	}
	expired := time.NewTimer(last)
	defer expired.Stop()
	select {
	case <-moved:
		return nil
	case <-expired.C:
		return nil
	case <-ctx.Done():
		return &UnsettledError{ctx.Err()}
	case <-s.client.ctx.Done():
		return &UnsettledError{errClosed}
	}
}

const (
	// retryInterval is how often what could not be done in Redis is tried again.
	retryInterval = 200 * time.Millisecond
	// So many wait for Redis at once and no more, since callers can make up credentials without end. The others are left
	// to expire.
	maxLateMoves = 256
	maxLateDrops = 64
)

// retries are things to be done in Redis that failed, and are tried again until there is no need any more.
type retries struct {
	client *redisClient
	slots  chan struct{}
}

func newRetries(client *redisClient, limit int) *retries {
	return &retries{client, make(chan struct{}, limit)}
}

// start tries again in the background, for that long at most. The channel is closed once it is done; it is nil if there
// are too many already.
func (r *retries) start(lasting time.Duration, try func() error) (done <-chan struct{}) {
	select {
	case r.slots <- struct{}{}:
	default:
		return nil
	}
	finished := make(chan struct{})
	if !r.client.spawn(func() {
		defer func() { <-r.slots }()
		if r.loop(lasting, try) {
			close(finished)
		}
	}) {
		<-r.slots
	}
	return finished
}

func (r *retries) loop(lasting time.Duration, try func() error) bool {
	tick := time.NewTicker(retryInterval)
	defer tick.Stop()
	expired := time.NewTimer(lasting)
	defer expired.Stop()
	for {
		select {
		case <-expired.C:
			return false
		case <-r.client.ctx.Done():
			return false
		case <-tick.C:
			if try() == nil {
				return true
			}
		}
	}
}
