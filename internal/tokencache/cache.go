// Package tokencache shares and caches calls for an org's ephemeral token, so that many callers
// cost Atlas few calls. It never returns a token that has been deleted.
//
// A call passes through layers: group (share.go) shares it, cacheLayer (caching.go) looks for a
// cached token, and upstream (upstream.go) calls Atlas.
//
// Sharing is always on. For each credential there is a next CreateToken, which callers join until
// it is sent. So the call to Atlas begins after every caller that shares its answer has arrived,
// and the answer is as fresh as if each had called alone. Plain single flight is not: a caller that
// arrives after a delete can join a call that began before the delete. A few such calls are in
// flight at a time (group.wait), and may be answered in any order.
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
	"crypto/rand"
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// Atlas is what the cache needs of Atlas. *atlas.Client is one. Errors are *atlas.Error.
type Atlas interface {
	CreateEphemeralToken(ctx context.Context, jwt atlas.JWT) (atlas.Token, error)
	DeleteEphemeralToken(ctx context.Context, jwt atlas.JWT) error
}

// Cache shares and caches calls. It is safe for concurrent use and must be closed.
type Cache struct {
	secret  [32]byte              // of the keys
	claims  *recent[atlas.Claims] // of callers' own JWTs
	calls   *group
	memory  *memoryStore // for hits, which need no sharing; nil with Redis or without a cache
	caching *cacheLayer  // nil without a cache
	creates *prometheus.CounterVec
}

// layer is one stage on the way to Atlas.
type layer interface {
	// create returns the ephemeral token of the request's org.
	create(ctx context.Context, r request) (Result, error)
	// delete deletes that token, and returns the org: a UUID, or "" if the JWT does not say.
	delete(ctx context.Context, r request) (org string, err error)
}

// maxTokens bounds the tokens in memory, of which the oldest are removed first, and the credentials
// that Atlas has throttled. Redis has bounds of its own.
const maxTokens = 10_000

// New returns a Cache in front of client. It does not wait for Redis. Until Redis answers, every
// create goes to Atlas.
func New(client Atlas, cfg Config) (*Cache, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	upstream := newUpstream(client)
	c := &Cache{claims: newRecent[atlas.Claims](maxClaims), calls: newGroup(upstream, cfg.CallTimeout)}
	_, _ = rand.Read(c.secret[:]) // never fails
	c.calls.tracer = cfg.Tracer
	c.creates = newMetrics(cfg.Registerer, c.calls.waiting.Load)
	if cfg.TTL == 0 {
		return c, nil
	}
	store, err := newStore(cfg)
	if err != nil {
		return nil, err
	}
	c.memory, _ = store.(*memoryStore)
	c.caching = &cacheLayer{store: store, next: upstream, stale: cfg.StaleIfError > 0, refusals: newRefusals()}
	c.calls.next, c.calls.caches = c.caching, true
	if c.caching.stale {
		c.calls.stale = c.caching.cached
	}
	return c, nil
}

// Close waits for the calls in progress. It cancels those that callers share; cancel the contexts
// of the callers before, for the others.
func (c *Cache) Close() {
	c.calls.close()
	if c.caching != nil {
		c.caching.store.Close()
	}
}

// Check returns why the cache is degraded, or nil.
func (c *Cache) Check() error {
	if c.caching == nil {
		return nil
	}
	return c.caching.store.Check()
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
	result, err := renewed(ctx, cred, func(cred atlas.Credential) (Result, error) { return c.create(ctx, cred, noCache) })
	result.Status.NoCache = noCache && !result.Status.Hit
	c.creates.WithLabelValues(result.Status.answered()).Inc()
	return result, err
}

// renewed runs call, and once more with the current credential if the profile's org has changed.
func renewed[T any](ctx context.Context, cred atlas.Credential, call func(atlas.Credential) (T, error)) (T, error) {
	if cred.JWT == "" || cred.Profile != "" && cred.Secret == "" { // all such would share one key
		var none T
		return none, errNoCredential
	}
	result, err := call(cred)
	if errors.Is(err, atlas.ErrOrgChanged) {
		if cred, err = cred.Renewed(ctx); err == nil {
			result, err = call(cred)
		}
	}
	return result, err
}

func (c *Cache) create(ctx context.Context, cred atlas.Credential, noCache bool) (Result, error) {
	r := request{cred: cred, key: c.key(cred), noCache: noCache}
	if c.memory != nil && !noCache {
		if found := c.memory.peek(r.key); found.Status.fresh() {
			return found, nil
		}
	}
	r.claims = c.claimsOf(r)
	result, err := c.calls.create(ctx, r)
	// The third check of the package comment. Callers with a JWT of their own need none: callers
	// that share a call have the same JWT.
	if err == nil && cred.Profile != "" && result.Org != r.claims.OrgID {
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
	return renewed(ctx, cred, func(cred atlas.Credential) (string, error) {
		r := request{cred: cred, key: c.key(cred)}
		r.claims = c.claimsOf(r)
		return c.calls.delete(ctx, r)
	})
}

// maxClaims bounds the claims that are kept, because they are expensive to parse.
const maxClaims = 4096

func (c *Cache) claimsOf(r request) atlas.Claims {
	if r.cred.Profile != "" { // parsed already, and another JWT has other ones
		return r.cred.Claims()
	}
	return c.claims.of(r.key, r.cred.JWT.UnverifiedClaims)
}

var errNoCredential = errors.New("the credential has no JWT, or is of a profile and has no secret")

// UnsettledError says that Delete stopped waiting before the delete was complete, because the
// caller left or the cache was closed: Atlas had not answered, or cached copies in a Redis that
// cannot be reached had not expired.
type UnsettledError struct{ Err error }

func (e *UnsettledError) Error() string { return "the delete had not ended: " + e.Err.Error() }

func (e *UnsettledError) Unwrap() error { return e.Err }
