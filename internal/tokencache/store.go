package tokencache

import (
	"context"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redis"
)

// store caches tokens, each guarded by the fence of its org.
//
// A fence holds the generation of its org. A caller notes the generation before it asks Atlas
// (snapshot). The answer is cached under that generation, and is read only while that is the
// current one. So a token that was requested before a delete is never read after it.
//
// Two events start a new generation. One is a delete that Atlas has carried out, or may have: while
// it is in progress the org is held, so nothing is read that may be deleted already, and when it
// ends a new generation starts. A delete that Atlas has not carried out only ends its hold. A hold
// whose replica was killed ends by itself, and starts a new generation then.
//
// The other event is an answer with another token than the last one. Then the last one was deleted
// by some other client of Atlas, or this answer is the older of the two. It is not known which, so
// neither is cached.
//
// A credential that Atlas has not accepted yet could be forged. Its delete does not hold the org,
// and starts a new generation only once Atlas has confirmed it. That is correct for other callers
// too: until the delete is confirmed, they may read the old token, as if they had called before the
// delete. But no caller gets the old token after another caller got the new one, because the answer
// with the new one started a new generation before it was returned.
type store interface {
	// Get returns the cached token, and the snapshot for Put. If there is none or the store fails,
	// the Result is zero. The snapshot must be released.
	Get(context.Context, request) (Result, snapshot)
	Release(snapshot)
	// Put caches Atlas's answer to a call that began after the snapshot was taken, for at most
	// life; if that is over, not at all. Calls overlap: if the answer to one that began later is
	// cached already, that stays. After Put has returned, no other token of the org is read in any
	// case.
	Put(ctx context.Context, before snapshot, r request, token atlas.Token, life time.Duration)
	// Drop removes the token that is cached for one credential.
	Drop(context.Context, request)
	// Hold begins a delete in an org: nothing is read there until Settle. The name is unique.
	Hold(org, name string)
	// Settle ends a delete in an org; "" means every org. It starts a new generation, unless Atlas
	// has not carried the delete out, and ends the hold, if it has a name: at once, or after the
	// settle time if Atlas may still carry it out. It returns nil when the deleted token cannot be
	// read any more, or an error if ctx ended before that.
	Settle(ctx context.Context, org, hold string, how outcome) error
	Check() error
	Close()
}

// newStore returns a store in Redis, or in memory if no Redis is configured.
func newStore(cfg Config) (store, error) {
	if cfg.Redis != nil {
		return newRedisStore(cfg)
	}
	return newMemoryStore(cfg), nil
}

// outcome is the outcome of a delete at Atlas.
type outcome = redis.Outcome

const (
	outcomeDone    = redis.Done
	outcomeNotDone = redis.NotDone
	outcomeUnknown = redis.Unknown
)

// snapshot is the state of the fences before the call to Atlas.
type snapshot struct {
	at         time.Time
	generation generation
	fence      *fence         // of the store in memory
	redis      redis.Snapshot // zero: Redis has not answered, and caches nothing
}

// cached returns the Result of a cached token, which is fresh for as long as ttl says.
func cached(token atlas.Token, org string, age, ttl time.Duration) Result {
	return Result{token, org, Status{Hit: true, Stale: ttl <= 0, TTL: ttl, Age: age}}
}
