// Package tokencache shares and remembers calls for an org's ephemeral token, so that many callers cost Atlas few calls,
// and never hands out a token that has been deleted.
//
// Sharing is always on. For each credential at most one CreateToken is in flight to Atlas; whoever arrives meanwhile
// shares the next one (flight.go). So the call to Atlas begins after every caller that shares its answer, and the answer
// is as fresh as if each had called alone. Plain single flight is not: a caller that comes after a delete can join a call
// that began before it.
//
// Remembering is off unless Config.TTL is set. What is remembered stands behind a fence of its org (store.go), in the
// memory of this process (memory.go) or in Redis for several replicas (redis.go). A delete moves the fence before and
// after it calls Atlas, whatever comes of it, and holds it in between: then nothing is read and nothing is stored.
//
// The package knows of callers only what Credential says. It imports atlas and nothing else of this module.
package tokencache

import (
	"context"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// Cache shares and remembers. It is safe for concurrent use and must be closed.
type Cache struct {
	keys    *hasher
	flights *flights
	store   store // nil: nothing is remembered
	stale   bool  // Config.StaleIfError is set
	// accepted are the callers' own credentials that Atlas has accepted of late.
	accepted *recent
	metrics  *metrics
}

// New returns a Cache. It does not wait for Redis: until that answers, every create goes to Atlas.
func New(cfg Config) (*Cache, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	flights := newFlights(cfg.CallTimeout)
	m, err := newMetrics(cfg.Registerer, flights.waiting.Load)
	if err != nil {
		return nil, err
	}
	c := &Cache{keys: newHasher(), flights: flights, metrics: m, stale: cfg.StaleIfError > 0, accepted: newRecent(cfg.MaxTokens)}
	switch {
	case cfg.Redis != nil:
		if c.store, err = newRedisStore(cfg, m); err != nil {
			return nil, err
		}
	case cfg.TTL > 0:
		c.store = newMemory(cfg)
	}
	return c, nil
}

// Close ends the calls in progress and waits for them.
func (c *Cache) Close() {
	c.flights.close()
	if c.store != nil {
		c.store.close()
	}
}

// Check is what an operator should know of, nil if all is well.
func (c *Cache) Check() error {
	if c.store == nil {
		return nil
	}
	return c.store.check()
}

// Answer is what Atlas answered, and to which JWT.
type Answer struct {
	Token atlas.Token
	JWT   atlas.JWT // the one that Atlas accepted, whose claims may be believed for that
}

// Result is an ephemeral token, its org (a UUID; "" if the JWT does not say) and where it comes from. When a create fails,
// Status still says what was tried.
type Result struct {
	Token  atlas.Token
	Org    string
	Status Status
}

// Create returns the ephemeral token of the credential's org: a remembered one, or what ask gets from Atlas in a call that
// began after this one and that others may share. With fresh set, nothing remembered is used. A caller whose ctx ends
// leaves; the call ends when the last has left.
//
// The error is ask's, or ctx's.
func (c *Cache) Create(ctx context.Context, cred Credential, fresh bool, ask func(context.Context) (Answer, error)) (Result, error) {
	key := c.keys.key(cred)
	if near, ok := c.store.(*memory); ok && !fresh {
		if found := near.peek(key, cred); found.usable() {
			return c.counted(found.result()), nil
		}
	}
	var kept func(context.Context) (Result, bool)
	if c.stale && !fresh {
		kept = func(ctx context.Context) (Result, bool) {
			found, _ := c.store.look(ctx, key, cred.read())
			return found.result(), found.there()
		}
	}
	result, err := c.flights.joinOr(ctx, key, fresh, func(ctx context.Context, fresh bool) (Result, error) {
		return c.fly(ctx, key, cred, fresh, ask)
	}, kept)
	if fresh && !result.Status.Hit {
		result.Status.Forward = ForwardRequest
	}
	return c.counted(result), err
}

func (c *Cache) counted(r Result) Result {
	c.metrics.created(r.Status)
	return r
}

// fly is one shared call: what is remembered, else what Atlas says, else what is kept for when Atlas fails.
func (c *Cache) fly(ctx context.Context, key key, cred Credential, fresh bool, ask func(context.Context) (Answer, error)) (Result, error) {
	missed := Result{Status: Status{Forward: ForwardMiss}}
	if c.store == nil {
		answer, err := ask(ctx)
		if err != nil {
			return missed, err
		}
		return Result{answer.Token, answer.JWT.UnverifiedClaims().OrgID, missed.Status}, nil
	}
	cred = cred.read()
	found, view := c.store.look(ctx, key, cred)
	if found.usable() && !fresh {
		return found.result(), nil
	}
	answer, err := ask(ctx)
	switch {
	case isRefusal(err):
		c.store.drop(ctx, key, cred)
		return missed, err
	case err != nil && !fresh && isFailure(err):
		// It is looked for again: what was there before the call may have been deleted meanwhile.
		if kept, _ := c.store.look(context.WithoutCancel(ctx), key, cred); kept.there() {
			return kept.result(), nil
		}
		return missed, err
	case err != nil:
		return missed, err
	}
	c.accepted.add(key)
	claims := answer.JWT.UnverifiedClaims() // Atlas has just accepted them
	if claims.OrgID != "" && claims.OrgID == cred.Org() {
		life := unlimited
		if !claims.Expiry.IsZero() {
			life = time.Until(claims.Expiry)
		}
		c.store.fill(ctx, view, key, cred, answer.Token, life)
	}
	return Result{answer.Token, claims.OrgID, missed.Status}, nil
}

// unlimited is the life of a JWT that does not say when it ends.
const unlimited = 100 * 365 * 24 * time.Hour

// Delete runs send, which deletes the org's token at Atlas and returns the JWT that Atlas accepted. When Delete returns
// nil, no copy of the deleted token is remembered anywhere.
//
// The error is send's, or an *UnsettledError.
func (c *Cache) Delete(ctx context.Context, cred Credential, send func(context.Context) (atlas.JWT, error)) error {
	if c.store == nil {
		_, err := send(ctx)
		return err
	}
	cred = cred.read()
	key := c.keys.key(cred)
	if cred.kind == kindUserAuthToken || c.accepted.has(key) {
		return c.heldDelete(ctx, key, cred, send)
	}
	// What Atlas has not accepted may be made up, and then it has no say in what others are answered. If Atlas confirms the
	// delete, the fence moves before anybody hears of it; if nobody knows, others may be given the old token for the TTL.
	jwt, err := c.send(ctx, send)
	if err != nil {
		if isRefusal(err) || outcomeUnknown(err) {
			c.store.drop(ctx, key, cred)
		}
		return err
	}
	c.accepted.add(key)
	return c.store.hold(ctx, cred.Org()).end(ctx, ended{done: true, ok: true, everything: jwt.UnverifiedClaims().OrgID != cred.Org()})
}

// heldDelete is a delete with a credential that Atlas has accepted before: the org is held until it has ended.
func (c *Cache) heldDelete(ctx context.Context, key key, cred Credential, send func(context.Context) (atlas.JWT, error)) error {
	held := c.store.hold(ctx, cred.Org())
	end := ended{unknown: true} // unless it returns, as after a panic
	defer func() {
		if !end.done {
			_ = held.end(ctx, end)
		}
	}()
	jwt, err := c.send(ctx, send)
	end = ended{done: true, ok: err == nil, unknown: outcomeUnknown(err)}
	// A profile's secret may have been replaced by one of another org since.
	end.everything = (end.ok || end.unknown) && jwt.UnverifiedClaims().OrgID != cred.Org()
	settled := held.end(ctx, end)
	if isRefusal(err) {
		c.store.drop(ctx, key, cred)
	}
	if err != nil {
		return err
	}
	return settled
}

// send bounds a delete, because the fence is not held for ever.
func (c *Cache) send(ctx context.Context, send func(context.Context) (atlas.JWT, error)) (atlas.JWT, error) {
	ctx, cancel := context.WithTimeout(ctx, c.flights.timeout)
	defer cancel()
	return send(ctx)
}
