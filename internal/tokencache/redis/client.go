package redis

import (
	"cmp"
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
)

// server is a Redis, a cluster, or what sentinels call the primary. It is what is used of
// [goredis.UniversalClient].
type server interface {
	goredis.Scripter
	io.Closer
	Pipeline() goredis.Pipeliner
}

// client runs scripts within a budget, and leaves a Redis that fails alone for a while.
type client struct {
	options *goredis.UniversalOptions
	budget  time.Duration
	metrics *metrics
	health  health
	batcher *batcher
	redis   atomic.Pointer[server]

	ctx    context.Context // of everything that goes on in the background
	cancel context.CancelFunc
	work   sync.WaitGroup // of that
}

// newClient returns a client whose work ends with ctx.
func newClient(ctx context.Context, cfg Config) (*client, error) {
	o, err := cfg.options()
	if err != nil {
		return nil, err
	}
	logging.Disable() // the library writes to stderr, in servers' words too
	c := &client{options: o, budget: cmp.Or(cfg.Budget, defaultBudget)}
	c.ctx, c.cancel = context.WithCancel(ctx)
	s := newServer(o)
	c.redis.Store(&s)
	return c, nil
}

// start runs what goes on in the background.
func (c *client) start() {
	c.batcher = newBatcher(c)
	c.work.Go(c.connect)
}

func (c *client) server() server { return *c.redis.Load() }

// connectInterval is how often connecting is tried at the start.
const connectInterval = time.Second

// connect connects before the first call needs Redis, so that an operator learns at once what is
// wrong. It tries until Redis has answered, however long that takes.
func (c *client) connect() {
	for {
		began := time.Now()
		_, err := c.run(timeout, scriptDrop, []string{keyOrgPrefix + "none"}, nil)
		c.health.report(began, err)
		if err == nil || !sleep(c.ctx, connectInterval) {
			return
		}
	}
}

// sleep reports whether ctx was still alive at the end.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// effort is how hard a caller tries to get an answer.
type effort int

const (
	usual   effort = iota // an answer within the budget, unless Redis has failed too often of late
	insist                // an answer within the budget, whatever happened before
	patient               // an answer within timeout, which says little: Redis may be no worse than slow
)

// read runs scriptRead, together with the reads of others.
func (c *client) read(ctx context.Context, keys []string, args ...any) (any, error) {
	return c.measure(ctx, "look", usual, func(time.Duration) (any, error) { return c.batcher.read(ctx, keys, args) })
}

// do runs a script.
func (c *client) do(ctx context.Context, op string, how effort, script *goredis.Script, keys []string, args ...any) (any, error) {
	return c.measure(ctx, op, how, func(within time.Duration) (any, error) { return c.run(within, script, keys, args) })
}

// measure asks Redis, unless that is resting. A caller that has less time than the budget, or
// leaves, says nothing about Redis.
func (c *client) measure(ctx context.Context, op string, how effort, ask func(within time.Duration) (any, error)) (any, error) {
	if how == usual && c.health.resting() {
		c.metrics.operations.WithLabelValues(op, "skipped").Inc()
		return nil, errResting
	}
	within, outcome := c.budget, "ok"
	if how == patient {
		within = timeout
	}
	began := time.Now()
	deadline, ok := ctx.Deadline()
	hurried := ok && deadline.Before(began.Add(within))
	if hurried {
		within = deadline.Sub(began)
	}
	answer, err := ask(within)
	if err != nil && (hurried || ctx.Err() != nil) {
		return nil, err
	}
	if err != nil {
		outcome = "failed"
		c.follow(err)
	}
	c.metrics.seconds.WithLabelValues(op).Observe(time.Since(began).Seconds())
	c.metrics.operations.WithLabelValues(op, outcome).Inc()
	if how != patient {
		c.health.report(began, err)
	}
	return answer, err
}

func (c *client) run(within time.Duration, script *goredis.Script, keys []string, args []any) (any, error) {
	ctx, cancel := context.WithTimeout(c.ctx, within)
	defer cancel()
	answer, err := script.Run(ctx, c.server(), keys, args...).Result()
	if c.ctx.Err() != nil {
		err = errClosed
	}
	return answer, err
}

// follow uses the whole cluster if the URL names one node, and that says that others have the keys.
func (c *client) follow(err error) {
	old := c.redis.Load()
	_, single := (*old).(*goredis.Client)
	if _, moved := goredis.IsMovedError(err); !moved || !single {
		return
	}
	o := *c.options
	o.IsClusterMode = true
	cluster := newServer(&o)
	if c.redis.CompareAndSwap(old, &cluster) {
		_ = (*old).Close()
	} else {
		_ = cluster.Close()
	}
}

// retryInterval is how often what could not be done in Redis is retried.
const retryInterval = 200 * time.Millisecond

// retry tries again in the background, for that long at most, if there is a slot for it. The
// channel is closed once try succeeds, and nil if there is no slot.
func (c *client) retry(slots chan struct{}, lasting time.Duration, try func() error) <-chan struct{} {
	select {
	case slots <- struct{}{}:
	default:
		return nil
	}
	done := make(chan struct{})
	c.work.Go(func() {
		defer func() { <-slots }()
		ctx, cancel := context.WithTimeout(c.ctx, lasting)
		defer cancel()
		for sleep(ctx, retryInterval) {
			if try() == nil {
				close(done)
				return
			}
		}
	})
	return done
}

// check returns what an operator should know of, or nil.
func (c *client) check() error {
	if err := c.health.check(); err != nil {
		return errors.New("Redis: " + err.Error()) //nolint:staticcheck // a name
	}
	return nil
}

// close ends what goes on in the background. Nothing may be begun any more.
func (c *client) close() {
	c.cancel()
	c.work.Wait()
	_ = c.server().Close()
}
