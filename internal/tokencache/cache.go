// Package tokencache shares and caches calls for an org's ephemeral token, so that many callers
// cost Atlas few calls. It never returns a token that has been deleted.
//
// A call passes through layers with the same interface, each of which knows only the next: group
// (share.go), caching (caching.go), holdOff (holdoff.go) and upstream (upstream.go), which calls
// Atlas.
//
// Sharing is always on. For each credential there is a next CreateToken, which callers join until
// it is sent. So the call to Atlas begins after every caller that shares its answer has arrived,
// and the answer is as fresh as if each had called alone. Plain single flight is not: a caller that
// arrives after a delete can join a call that began before the delete. A few such calls are in
// flight at a time (pacing.go), and may be answered in any order.
//
// Caching is off unless Config.TTL is set. Each cached token is guarded by a fence of its org
// (store.go), and by what Atlas last said to its credential. Tokens and fences are in the memory of
// this process (memory.go), or in Redis for several replicas (package redis).
//
// Three independent checks keep the answers of different callers apart: the key is a hash of
// profile, org and secret, or of the caller's own JWT; callers share a call only if these values
// themselves are equal; and an answer for another org than the caller's is not returned.
//
// The package imports atlas and package redis, and nothing else of this module but config.
package tokencache

import (
	"context"
	"errors"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// Atlas is what the cache needs of Atlas. *atlas.Client is one. Errors are *atlas.Error.
type Atlas interface {
	CreateEphemeralToken(ctx context.Context, jwt atlas.JWT) (atlas.Token, error)
	DeleteEphemeralToken(ctx context.Context, jwt atlas.JWT) error
}

// Cache shares and caches calls. It is safe for concurrent use and must be closed.
type Cache struct {
	keys    *hasher
	claims  *recent[*atlas.Claims] // of the callers' own JWTs
	calls   *group
	memory  *memoryStore // for hits, which need no sharing; nil with Redis or without a cache
	caching *caching     // nil without a cache
	metrics *metrics
}

// layer is one stage on the way to Atlas.
type layer interface {
	// create returns the ephemeral token of the request's org.
	create(ctx context.Context, r request) (Result, error)
	// delete deletes that token, and returns the org: a UUID, or "" if the JWT does not say.
	delete(ctx context.Context, r request) (org string, err error)
	// cached returns a cached token, fresh or stale, for when Atlas does not answer.
	cached(ctx context.Context, r request) (Result, bool)
}

// New returns a Cache in front of client. It does not wait for Redis. Until Redis answers, every
// create goes to Atlas.
func New(client Atlas, cfg Config) (*Cache, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	c := &Cache{keys: newHasher(), claims: newRecent[*atlas.Claims](maxClaims)}
	c.calls = newGroup(newHoldOff(upstream{client}, cfg.MaxTokens), cfg.CallTimeout, cfg.StaleIfError > 0)
	c.calls.tracer = cfg.Tracer
	var err error
	if c.metrics, err = newMetrics(cfg.Registerer, c.calls.waiting.Load); err != nil {
		return nil, err
	}
	var s store
	switch {
	case cfg.Redis != nil:
		if s, err = newRedisStore(cfg); err != nil {
			return nil, err
		}
	case cfg.TTL > 0:
		c.memory = newMemoryStore(cfg)
		s = c.memory
	default:
		return c, nil
	}
	c.caching = newCaching(s, c.calls.next, cfg)
	c.calls.next, c.calls.caches = c.caching, true
	return c, nil
}

// Close cancels the calls in progress and waits for them.
func (c *Cache) Close() {
	c.calls.close()
	if c.caching != nil {
		c.caching.close()
	}
}

// Check returns why the cache is degraded, or nil.
func (c *Cache) Check() error {
	if c.caching == nil {
		return nil
	}
	return c.caching.store.check()
}

// Result is an ephemeral token, its org (a UUID; "" if the JWT does not name one) and where the
// token comes from. When a create fails, Status still says what was tried.
type Result struct {
	Token  atlas.Token
	Org    string
	Status Status
}

// Create returns the ephemeral token of the credential's org: a cached one, or Atlas's answer to a
// call that begins after this one, and that other callers may share. With noCache set, the cache is
// not used. A caller whose ctx ends stops waiting; the call to Atlas is cancelled when its last
// waiter has left.
//
// The error comes from the credential, from Atlas or from ctx.
func (c *Cache) Create(ctx context.Context, cred atlas.Credential, noCache bool) (Result, error) {
	result, err := c.create(ctx, cred, noCache)
	if errors.Is(err, atlas.ErrOrgChanged) {
		if cred, err = cred.Renewed(ctx); err == nil {
			result, err = c.create(ctx, cred, noCache)
		}
	}
	if noCache && !result.Status.Hit {
		result.Status.Forward = ForwardRequest
	}
	c.metrics.created(result.Status)
	return result, err
}

func (c *Cache) create(ctx context.Context, cred atlas.Credential, noCache bool) (Result, error) {
	r, err := c.request(cred, noCache)
	if err != nil {
		return Result{}, err
	}
	if c.memory != nil && !noCache {
		if found := c.memory.peek(r.key); found.usable() {
			return found.result(), nil
		}
	}
	result, err := c.calls.create(ctx, c.withClaims(r))
	// The third check of the package comment. Callers with a JWT of their own need none: callers that
	// share a call have the same JWT.
	if err == nil && cred.Profile != "" && result.Org != cred.Claims().OrgID {
		return Result{}, atlas.ErrOrgChanged
	}
	return result, err
}

// Delete deletes the ephemeral token of the credential's org at Atlas, and returns that org: a
// UUID, or "" if the JWT does not name one. When it returns without an error, no copy of the
// deleted token can be read from a cache any more. A delete whose ctx ends before it was sent is
// not sent.
//
// The error comes from the credential or from Atlas, or is an *UnsettledError.
func (c *Cache) Delete(ctx context.Context, cred atlas.Credential) (org string, err error) {
	org, err = c.delete(ctx, cred)
	if errors.Is(err, atlas.ErrOrgChanged) {
		if cred, err = cred.Renewed(ctx); err == nil {
			org, err = c.delete(ctx, cred)
		}
	}
	return org, err
}

func (c *Cache) delete(ctx context.Context, cred atlas.Credential) (org string, err error) {
	r, err := c.request(cred, false)
	if err != nil {
		return "", err
	}
	return c.calls.delete(ctx, c.withClaims(r))
}

// maxClaims bounds the claims that are kept: some hundred bytes each.
const maxClaims = 4096

// withClaims returns r with its claims parsed, which does not make them true.
func (c *Cache) withClaims(r request) request {
	if r.cred.Profile == "" { // a TokenSource parses those of its JWTs
		r.cred = r.cred.WithClaims(c.claims.of(r.key, func() *atlas.Claims {
			claims := r.cred.JWT.UnverifiedClaims()
			return &claims
		}))
	}
	return r
}
