// Package tokencache shares and remembers calls for an org's ephemeral token, so that many callers cost Atlas few calls,
// and never hands out a token that has been deleted.
//
// A call passes layers of one shape, each of which knows only the next: group (share.go) → remembering (remember.go) →
// upstream (upstream.go), which is Atlas.
//
// Sharing is always on. For each credential at most one CreateToken is in flight to Atlas; whoever arrives meanwhile
// shares the next one. So the call to Atlas begins after every caller that shares its answer, and the answer is as fresh as
// if each had called alone. Plain single flight is not: a caller that comes after a delete can join a call that began
// before it.
//
// Remembering is off unless Config.TTL is set. What is remembered stands behind a fence of its org (store.go), in the
// memory of this process (memory.go) or in Redis for several replicas (redis.go).
//
// What keeps two callers' answers apart does not hang on one string: the key is made of profile, org and secret, or of the
// caller's own JWT; callers share a call only if these are equal themselves; and an answer of another org than the
// caller's is not handed over.
//
// The package imports atlas and nothing else of this module.
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

// Cache shares and remembers. It is safe for concurrent use and must be closed.
type Cache struct {
	keys     *hasher
	calls    *group
	memory   *memory      // what needs no sharing; nil without a memory of this process
	remember *remembering // nil: nothing is remembered
	metrics  *metrics
}

// layer is one stage on the way to Atlas.
type layer interface {
	// create returns the ephemeral token of the request's org.
	create(ctx context.Context, r request) (Result, error)
	// delete deletes that token, and returns the org: a UUID, or "" if the JWT does not say.
	delete(ctx context.Context, r request) (org string, err error)
	// kept returns a token that may be handed out because Atlas does not answer.
	kept(ctx context.Context, r request) (Result, bool)
}

// New returns a Cache in front of client. It does not wait for Redis: until that answers, every create goes to Atlas.
func New(client Atlas, cfg Config) (*Cache, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	c := &Cache{keys: newHasher()}
	c.calls = newGroup(upstream{client}, cfg.CallTimeout, cfg.StaleIfError > 0)
	var err error
	if c.metrics, err = newMetrics(cfg.Registerer, c.calls.waiting.Load); err != nil {
		return nil, err
	}
	var remembered store
	switch {
	case cfg.Redis != nil:
		if remembered, err = newRedisStore(cfg, c.metrics); err != nil {
			return nil, err
		}
	case cfg.TTL > 0:
		c.memory = newMemory(cfg)
		remembered = c.memory
	default:
		return c, nil
	}
	c.remember = newRemembering(remembered, c.calls.next, cfg)
	c.calls.next = c.remember
	return c, nil
}

// Close ends the calls in progress and waits for them.
func (c *Cache) Close() {
	c.calls.close()
	if c.remember != nil {
		c.remember.close()
	}
}

// Check is what an operator should know of, nil if all is well.
func (c *Cache) Check() error {
	if c.remember == nil {
		return nil
	}
	return c.remember.store.check()
}

// Result is an ephemeral token, its org (a UUID; "" if the JWT does not say) and where it comes from. When a create fails,
// Status still says what was tried.
type Result struct {
	Token  atlas.Token
	Org    string
	Status Status
}

// Create returns the ephemeral token of the credential's org: a remembered one, or what Atlas answers to a call that began
// after this one and that others may share. With fresh set, nothing remembered is used. A caller whose ctx ends leaves; the
// call ends when the last has left.
//
// The error is that of the credential, of Atlas, or ctx's.
func (c *Cache) Create(ctx context.Context, cred atlas.Credential, fresh bool) (Result, error) {
	result, err := c.create(ctx, cred, fresh)
	if errors.Is(err, atlas.ErrOrgChanged) {
		if cred, err = cred.Renewed(ctx); err == nil {
			result, err = c.create(ctx, cred, fresh)
		}
	}
	if fresh && !result.Status.Hit {
		result.Status.Forward = ForwardRequest
	}
	c.metrics.created(result.Status)
	return result, err
}

func (c *Cache) create(ctx context.Context, cred atlas.Credential, fresh bool) (Result, error) {
	missed := Result{Status: Status{Forward: ForwardMiss}}
	r, err := c.request(cred, fresh)
	if err != nil {
		return missed, err
	}
	if c.memory != nil && !fresh {
		if found := c.memory.peek(r.key); found.usable() {
			return found.result(), nil
		}
	}
	result, err := c.calls.create(ctx, c.toRemember(r))
	if err == nil && cred.Profile != "" && result.Org != cred.Claims().OrgID {
		return missed, atlas.ErrOrgChanged // however it came about
	}
	return result, err
}

// Delete deletes the ephemeral token of the credential's org at Atlas, and returns that org: a UUID, or "" if the JWT does
// not say. When it returns without an error, no copy of the deleted token is remembered anywhere.
//
// The error is that of the credential, of Atlas, or an *UnsettledError.
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
	return c.calls.delete(ctx, c.toRemember(r))
}

// toRemember is r with its claims read, if anything is remembered by them.
func (c *Cache) toRemember(r request) request {
	if c.remember != nil {
		r.cred = r.cred.WithClaims()
	}
	return r
}
