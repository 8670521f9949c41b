package tokencache

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// defaultHoldOff is used, and told to callers, when Atlas throttles and does not say for how long.
const defaultHoldOff = time.Second

// holdOff is the layer that does not call Atlas with a throttled credential until the time that
// Atlas named has passed. A profile stays the same credential when its JWT is renewed.
type holdOff struct {
	next layer
	most int

	mu    sync.Mutex
	until map[key]time.Time // guarded by mu
}

func newHoldOff(next layer, most int) *holdOff {
	return &holdOff{next: next, most: most, until: map[key]time.Time{}}
}

func (h *holdOff) create(ctx context.Context, r request) (Result, error) {
	if err := h.throttled(r.key, atlas.OpCreate); err != nil {
		return Result{}, err
	}
	result, err := h.next.create(ctx, r)
	h.note(r.key, err)
	return result, err
}

func (h *holdOff) delete(ctx context.Context, r request) (string, error) {
	if err := h.throttled(r.key, atlas.OpDelete); err != nil {
		return "", err
	}
	org, err := h.next.delete(ctx, r)
	h.note(r.key, err)
	return org, err
}

func (h *holdOff) cached(ctx context.Context, r request) (Result, bool) { return h.next.cached(ctx, r) }

var errHeldOff = errors.New("Atlas has throttled this credential, and the time that it named has not passed")

// throttled returns what Atlas would answer, or nil if it may be called.
func (h *holdOff) throttled(k key, op atlas.Operation) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	until, ok := h.until[k]
	if !ok {
		return nil
	}
	left := time.Until(until)
	if left <= 0 {
		delete(h.until, k)
		return nil
	}
	return &atlas.Error{Op: op, Kind: atlas.KindStatus, StatusCode: http.StatusTooManyRequests, RetryAfter: left, Err: errHeldOff}
}

// note records an answer by which Atlas throttles a credential.
func (h *holdOff) note(k key, err error) {
	e, ok := errors.AsType[*atlas.Error](err)
	if !ok || e.Kind != atlas.KindStatus || e.StatusCode != http.StatusTooManyRequests {
		return
	}
	if e.Op != atlas.OpCreate && e.Op != atlas.OpDelete {
		return // of a login: atlas.TokenSource handles it
	}
	until := time.Now().Add(cmp.Or(e.RetryAfter, defaultHoldOff))
	h.mu.Lock()
	defer h.mu.Unlock()
	if until.Before(h.until[k]) {
		return // the longer wait counts
	}
	if _, there := h.until[k]; !there && len(h.until) >= h.most {
		h.makeRoom()
	}
	h.until[k] = until
}

// makeRoom removes one credential, if possible one whose time has passed. The caller holds mu.
func (h *holdOff) makeRoom() {
	var picked key
	visited, now := 0, time.Now()
	for k, until := range h.until {
		picked = k
		if visited++; visited == 8 || until.Before(now) {
			break
		}
	}
	delete(h.until, picked)
}
