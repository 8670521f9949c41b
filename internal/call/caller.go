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

// The limits that a call can be refused for.
const (
	inProgressLimit        = "in_progress"         // all places are taken
	callerInProgressLimit  = "caller_in_progress"  // the caller has its share of the places
	unknownInProgressLimit = "unknown_in_progress" // callers that are not known yet have theirs
	callerRateLimit        = "caller_rate"
)

// Limits are all that a call can be refused for.
var Limits = [...]string{inProgressLimit, callerInProgressLimit, unknownInProgressLimit, callerRateLimit}

// limitCaller keeps one caller from taking the places and the time of all. It may have as many calls in progress as there are free
// places: alone it gets half, k greedy callers get 1/(k+1) each, and there is always room for another (dynamic thresholds,
// Choudhury and Hahne, 1998).
//
// A caller is the identity that was verified, else the credential. Credentials that have not had a successful call yet form one caller
// together, because a client can invent any number of them.
//
// perSecond bounds the calls of one caller that Atlas has to answer; 0 is no limit. A call that is answered from the cache or
// together with another costs next to nothing and is not counted. That is known at its end, so a call is charged then, and a caller
// in debt is refused until the debt is paid.
func limitCaller(places, perSecond int, refused func(limit string)) grpc.UnaryServerInterceptor {
	callers := newCallers(places, perSecond)
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (_ any, err error) {
		rec := RecordFrom(ctx)
		c := callers.identify(rec.grant)
		if limit := callers.enter(c, time.Now()); limit != "" {
			refused(limit)
			return nil, &apierror.Error{Reason: apierror.Overloaded, Cause: fmt.Errorf("limit of calls: %s", limit)}
		}
		answered := false // not after a panic either
		defer func() { callers.leave(c, answered, rec.Free, time.Now()) }()
		resp, err := handler(ctx, req)
		answered = err == nil
		return resp, err
	}
}

// caller is the one that a call counts for.
type caller struct {
	id    uint64 // a hash
	known bool   // the identity is verified, or the credential had a successful call
}

// place is the key of the caller's share.
func (c caller) place() uint64 {
	if c.known {
		return c.id
	}
	return 0
}

// callers counts the calls of each caller. Callers are hashed with a seed of this process, so that none can collide with another on
// purpose.
type callers struct {
	seed      maphash.Seed
	places    int
	perSecond int

	mu         sync.Mutex
	taken      int            // guarded by mu; places
	inProgress map[uint64]int // guarded by mu; calls by caller, of those that have any
	// Guarded by mu: the known callers with what is left of their rate. When there are maxKnown, those that have not called since
	// the last time there were are forgotten.
	recent, before map[uint64]*rate.Limiter
}

// maxKnown bounds the memory of callers: they are at most twice as many.
const maxKnown = 32 << 10

func newCallers(places, perSecond int) *callers {
	return &callers{
		seed: maphash.MakeSeed(), places: places, perSecond: perSecond,
		inProgress: make(map[uint64]int), recent: make(map[uint64]*rate.Limiter),
	}
}

// identify returns the caller of a call that was let in.
func (c *callers) identify(grant auth.Grant) caller {
	if grant.Caller.Name != "" {
		return caller{maphash.String(c.seed, grant.Caller.Kind+"\x00"+grant.Caller.Name), true}
	}
	id := maphash.String(c.seed, string(grant.JWT))
	c.mu.Lock()
	defer c.mu.Unlock()
	return caller{id, c.recent[id] != nil || c.before[id] != nil}
}

// enter begins a call, which leave ends, unless it is beyond the limit that enter returns.
func (c *callers) enter(by caller, now time.Time) (limit string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	free := c.places - c.taken
	switch {
	case free <= 0:
		return inProgressLimit
	case c.inProgress[by.place()] < free:
	case by.known:
		return callerInProgressLimit
	default:
		return unknownInProgressLimit
	}
	if by.known && c.perSecond > 0 && c.rate(by.id).TokensAt(now) < 1 {
		return callerRateLimit
	}
	c.taken++
	c.inProgress[by.place()]++
	return ""
}

// leave ends a call. One that was answered makes its caller known.
func (c *callers) leave(by caller, answered, free bool, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.taken--
	if c.inProgress[by.place()]--; c.inProgress[by.place()] == 0 {
		delete(c.inProgress, by.place())
	}
	if !by.known && !answered {
		return
	}
	if limiter := c.rate(by.id); c.perSecond > 0 && !free {
		limiter.ReserveN(now, 1)
	}
}

// rate returns what is left of a known caller's rate. The caller of rate holds mu.
func (c *callers) rate(id uint64) *rate.Limiter {
	limiter := c.recent[id]
	if limiter != nil {
		return limiter
	}
	if limiter = c.before[id]; limiter == nil {
		limiter = rate.NewLimiter(rate.Limit(c.perSecond), c.perSecond) // the calls of a second may come at once
	}
	if len(c.recent) >= maxKnown {
		c.recent, c.before = make(map[uint64]*rate.Limiter), c.recent
	}
	c.recent[id] = limiter
	return limiter
}
