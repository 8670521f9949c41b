package tokencache

import (
	"context"
	"time"
)

func (s *redisStore) invalidate(ctx context.Context, r request) {
	names := []string{s.derived.of(r.key, r.derive).tokenKey}
	drop := func(ctx context.Context, how effort) error {
		_, err := s.client.do(ctx, "drop", how, scriptDrop, names)
		return err
	}
	if drop(ctx, usual) != nil {
		s.client.retry(s.lateDrops, s.lifetime(), func() error { return drop(context.Background(), patient) })
	}
}

// lifetime is the time after which all copies that are in Redis now must have expired. It has a margin of one percent and a
// bit, because clocks run at different speeds.
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

// begin ignores a failure: then other replicas read the old token until end.
func (h *redisDeletion) begin(context.Context) { _ = h.move(insist, h.store.holdTime) }

func (h *redisDeletion) move(how effort, holdFor time.Duration) error {
	answer, err := h.store.client.do(context.Background(), "move", how, scriptMove, []string{h.key},
		newEpoch(), h.field, milliseconds(holdFor), milliseconds(h.store.keepFences))
	if err == nil && answer != any(int64(1)) {
		err = errMalformed
		h.store.client.health.report(err)
	}
	return err
}

func (h *redisDeletion) end(ctx context.Context, how outcome) error {
	s := h.store
	holdFor := time.Duration(0)
	if how == outcomeUnknown {
		holdFor = s.settle
	}
	if h.move(insist, holdFor) == nil || how == outcomeNotDone {
		return nil // a hold that is left expires
	}
	// By then, every copy that was stored before the delete took effect has expired.
	last := s.lifetime() + holdFor
	moved := s.client.retry(s.lateMoves, last, func() error { return h.move(patient, holdFor) })
	if how != outcomeDone {
		return nil // the delete is not acknowledged
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

// The most operations that are retried at a time, because callers can make up any number of credentials. What is not
// retried expires.
const (
	maxLateMoves = 256
	maxLateDrops = 64
)
