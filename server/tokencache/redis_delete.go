package tokencache

import (
	"context"
	"time"

	"github.com/redis/rueidis"
)

// scriptDrop forgets one value.
var scriptDrop = rueidis.NewLuaScript(`return redis.call('DEL', KEYS[1])`)

func (s *redisStore) forget(_ context.Context, r request) {
	names := []string{tokenKey(r.cred)}
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

func (s *redisStore) deletion(org string) deletion {
	return &redisDeletion{store: s, key: orgKey(org), field: "hold:" + newEpoch()}
}

type redisDeletion struct {
	store      *redisStore
	key, field string
}

// begin reports nothing: if it fails, what was stored is read until the end.
func (h *redisDeletion) begin(context.Context) { _ = h.move(h.store.client.insist, h.store.holdTime) }

// scriptRunner is redisClient.insist or redisClient.retry.
type scriptRunner func(name string, script *rueidis.Lua, keys, args []string) (rueidis.RedisMessage, error)

func (h *redisDeletion) move(run scriptRunner, holdFor time.Duration) error {
	_, err := run("move", scriptMove, []string{h.key},
		[]string{newEpoch(), h.field, milliseconds(holdFor), milliseconds(h.store.keepFences)})
	return err
}

func (h *redisDeletion) end(ctx context.Context, how outcome) error {
	s := h.store
	holdFor := time.Duration(0)
	if how == outcomeUnknown {
		holdFor = s.settle
	}
	if h.move(s.client.insist, holdFor) == nil || how == outcomeNotDone {
		return nil // a hold that was made ends by itself
	}
	// A copy that was stored before the delete took effect expires so long after that at the latest.
	last := s.lifetime() + holdFor
	moved := s.lateMoves.start(last, func() error { return h.move(s.client.retry, holdFor) })
	if how != outcomeDone {
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
