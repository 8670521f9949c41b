package call

import (
	"context"
	"fmt"
	"hash/maphash"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
)

// The limits of one caller that a call can be refused for.
const (
	callerRateLimit       = "caller_rate"
	callerInProgressLimit = "caller_in_progress"
)

// limitCaller keeps one caller from taking the places and the time of all: at most half of the calls in progress are his, and
// perSecond of those that Atlas has to answer; 0 is no limit of the second kind. What is answered from memory, or by a call that
// another's stands for, costs next to nothing and does not count. That is known once a call has ended, so it is charged then: who is
// in debt is refused until it is paid off. Nothing that anybody can write into a header
// makes a caller another one, but a credential: whoever makes one up for each call is not held up here, nor does he hold up
// anybody; what bounds him is what bounds all calls together.
func limitCaller(maxCalls int64, perSecond int, refused func(limit string)) grpc.UnaryServerInterceptor {
	callers := newCallers(max(maxCalls/2, 1), perSecond)
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		rec := RecordFrom(ctx)
		caller := callers.key(rec.grant)
		if limit := callers.enter(caller, time.Now()); limit != "" {
			refused(limit)
			return nil, &apierror.Error{Reason: apierror.Overloaded, Cause: fmt.Errorf("limit of one caller: %s", limit)}
		}
		defer func() { callers.leave(caller, rec.Free, time.Now()) }()
		return handler(ctx, req)
	}
}

// callers counts what each caller does. A caller is a hash under a key of this process's own, so nobody can make his collide
// with another's.
type callers struct {
	seed          maphash.Seed
	maxInProgress int64
	perSecond     int

	mu         sync.Mutex
	inProgress map[uint64]int64 // guarded by mu; those that have any
	// Guarded by mu: who has begun a call since turned, and who in the second before that. A bucket without debt is full again a
	// second after its last call, and so as good as new: those of before can be forgotten.
	recent, before map[uint64]*rate.Limiter
	turned         time.Time
}

// maxBuckets bounds the memory of made-up credentials. Whoever comes when there is no room is let pass: no bucket that is in
// use makes room for him, and he may have room in the next second.
const maxBuckets = 32 << 10

func newCallers(maxInProgress int64, perSecond int) *callers {
	return &callers{
		seed: maphash.MakeSeed(), maxInProgress: maxInProgress, perSecond: perSecond,
		inProgress: make(map[uint64]int64), recent: make(map[uint64]*rate.Limiter),
	}
}

// key is who makes the call: whom it was verified to be from, else whoever has its credential.
func (c *callers) key(grant auth.Grant) uint64 {
	if known := grant.Caller; known.Name != "" {
		return maphash.String(c.seed, known.Kind+"\x00"+known.Name)
	}
	return maphash.String(c.seed, string(grant.JWT))
}

// enter begins a call, which leave ends, unless that would be beyond the limit that it returns.
func (c *callers) enter(caller uint64, now time.Time) (limit string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inProgress[caller] >= c.maxInProgress {
		return callerInProgressLimit
	}
	if c.perSecond > 0 {
		if bucket := c.bucket(caller, now); bucket != nil && bucket.TokensAt(now) < 1 {
			return callerRateLimit
		}
	}
	c.inProgress[caller]++
	return ""
}

func (c *callers) leave(caller uint64, free bool, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.perSecond > 0 && !free {
		if bucket := c.bucket(caller, now); bucket != nil {
			bucket.ReserveN(now, 1)
		}
	}
	if c.inProgress[caller]--; c.inProgress[caller] == 0 {
		delete(c.inProgress, caller)
	}
}

// bucket is the caller's, nil if there is no room for it. Whoever calls it holds mu.
func (c *callers) bucket(caller uint64, now time.Time) *rate.Limiter {
	if now.Sub(c.turned) >= time.Second {
		if now.Sub(c.turned) >= 2*time.Second {
			c.recent = nil
		}
		c.before, c.recent, c.turned = c.recent, make(map[uint64]*rate.Limiter), now
	}
	bucket := c.recent[caller]
	if bucket != nil {
		return bucket
	}
	bucket = c.before[caller]
	if len(c.recent) >= maxBuckets {
		return bucket // that of before, for as long as it is there
	}
	if bucket == nil {
		bucket = rate.NewLimiter(rate.Limit(c.perSecond), c.perSecond) // a second's worth may come at once
	}
	c.recent[caller] = bucket
	return bucket
}
