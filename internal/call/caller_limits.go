package call

import (
	"hash/maphash"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
)

const (
	inProgressLimit        = "in_progress"         // all slots are taken
	callerInProgressLimit  = "caller_in_progress"  // the caller has its share of the slots
	unknownInProgressLimit = "unknown_in_progress" // unknown callers have their share
	callerRateLimit        = "caller_rate"
)

// Limits lists the limits for which the chain refuses calls.
var Limits = [...]string{inProgressLimit, callerInProgressLimit, unknownInProgressLimit, callerRateLimit}

// caller is the caller that a call counts for.
type caller struct {
	id    uint64 // a hash
	known bool   // a verified identity, or a credential that had a successful call
}

// share returns the caller's key in inProgress. Unknown callers have one share together.
func (c caller) share() uint64 {
	if c.known {
		return c.id
	}
	return 0
}

// callers limits the calls of each caller. A caller may have as many in progress as there are free
// slots: alone it gets half, k greedy callers get 1/(k+1) each, and there is always room for
// another (dynamic thresholds, Choudhury and Hahne, 1998).
//
// A caller is a verified identity, or else a credential. All credentials without a successful call
// so far count as one caller, because a client can invent any number of them. Callers are hashed
// with a random seed, so that a caller cannot choose to collide with another.
//
// perSecond limits the calls of one caller that reach Atlas; 0 is no limit. Whether a call reached
// Atlas is known at its end, so it is charged then, and a caller in debt is refused until the debt
// is paid off.
type callers struct {
	seed      maphash.Seed
	slots     int
	perSecond int

	mu         sync.Mutex     // guards the fields below
	taken      int            // slots
	inProgress map[uint64]int // calls by caller; no zero values
	// Known callers in two generations: when recent has maxKnown entries, it replaces before.
	recent, before map[uint64]*rate.Limiter
}

// maxKnown limits a generation of known callers.
const maxKnown = 32 << 10

func newCallers(slots, perSecond int) *callers {
	return &callers{
		seed: maphash.MakeSeed(), slots: slots, perSecond: perSecond,
		inProgress: make(map[uint64]int), recent: make(map[uint64]*rate.Limiter),
	}
}

// identify returns the caller of an authenticated call.
func (c *callers) identify(grant auth.Grant) caller {
	if grant.Caller.Name != "" {
		return caller{maphash.String(c.seed, grant.Caller.Kind+"\x00"+grant.Caller.Name), true}
	}
	id := maphash.String(c.seed, string(grant.JWT))
	c.mu.Lock()
	defer c.mu.Unlock()
	return caller{id, c.recent[id] != nil || c.before[id] != nil}
}

// enter starts a call, which leave ends, or returns the limit for which the call is refused.
func (c *callers) enter(by caller, now time.Time) (limit string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	free := c.slots - c.taken
	switch {
	case free <= 0:
		return inProgressLimit
	case c.inProgress[by.share()] < free:
	case by.known:
		return callerInProgressLimit
	default:
		return unknownInProgressLimit
	}
	if by.known && c.perSecond > 0 && c.rate(by.id).TokensAt(now) < 1 {
		return callerRateLimit
	}
	c.taken++
	c.inProgress[by.share()]++
	return ""
}

// leave ends a call. A successful call makes its caller known.
func (c *callers) leave(by caller, succeeded, noAtlasCall bool, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.taken--
	if c.inProgress[by.share()]--; c.inProgress[by.share()] == 0 {
		delete(c.inProgress, by.share())
	}
	if !by.known && !succeeded {
		return
	}
	if limiter := c.rate(by.id); c.perSecond > 0 && !noAtlasCall {
		limiter.ReserveN(now, 1)
	}
}

// rate returns the limiter of a known caller. The caller of rate holds mu.
func (c *callers) rate(id uint64) *rate.Limiter {
	limiter := c.recent[id]
	if limiter != nil {
		return limiter
	}
	if limiter = c.before[id]; limiter == nil {
		limiter = rate.NewLimiter(rate.Limit(c.perSecond), c.perSecond) // a second's calls may come at once
	}
	if len(c.recent) >= maxKnown {
		c.recent, c.before = make(map[uint64]*rate.Limiter), c.recent
	}
	c.recent[id] = limiter
	return limiter
}
