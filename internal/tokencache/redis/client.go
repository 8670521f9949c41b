package redis

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
)

// server is a Redis, a cluster, or a primary found by sentinels: the part of
// [goredis.UniversalClient] that is used here.
type server interface {
	goredis.Scripter
	io.Closer
	Pipeline() goredis.Pipeliner
}

// client runs scripts within a budget, and skips a Redis that fails for a while.
type client struct {
	cfg     Config
	budget  time.Duration
	metrics *metrics
	health  health
	batcher *batcher
	redis   atomic.Pointer[server]

	ctx    context.Context // of background work
	cancel context.CancelFunc
	work   sync.WaitGroup // of background work
}

// newClient returns a client whose work ends with ctx.
func newClient(ctx context.Context, cfg Config) (*client, error) {
	o, err := options(cfg)
	if err != nil {
		return nil, err
	}
	logging.Disable() // the library writes to stderr, including text from servers
	c := &client{cfg: cfg, budget: cmp.Or(cfg.Budget, defaultBudget), metrics: newMetrics(cfg.Registerer)}
	c.health.log = cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler))
	c.ctx, c.cancel = context.WithCancel(ctx)
	s := newServer(o)
	c.redis.Store(&s)
	return c, nil
}

func (c *client) server() server { return *c.redis.Load() }

// connectInterval is the time between attempts to connect at the start.
const connectInterval = time.Second

// connect connects before the first call needs Redis, so that a wrong setting is logged at once. It
// tries until Redis has answered.
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

// sleep waits for d, and reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// effort says how long an operation waits for Redis, and whether it may be skipped.
type effort int

const (
	usual   effort = iota // within the budget; skipped after several failures
	insist                // within the budget; never skipped
	patient               // within timeout; not counted as a failure, because Redis may only be slow
)

// read runs scriptRead, together with the reads of others.
func (c *client) read(ctx context.Context, keys []string, args ...any) (any, error) {
	return c.measure(ctx, "look", usual, func(time.Duration) (any, error) { return c.batcher.read(ctx, keys, args) })
}

// do runs a script.
func (c *client) do(ctx context.Context, op string, how effort, script *goredis.Script, keys []string, args ...any) (any, error) {
	return c.measure(ctx, op, how, func(within time.Duration) (any, error) { return c.run(within, script, keys, args) })
}

// measure calls Redis, unless health is resting, and reports the outcome. If the caller leaves, or
// has less time than the budget, a failure is not counted against Redis.
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

// follow switches to a cluster client if the URL names one node of a cluster.
func (c *client) follow(err error) {
	old := c.redis.Load()
	_, single := (*old).(*goredis.Client)
	if _, moved := goredis.IsMovedError(err); !moved || !single {
		return
	}
	o, _ := options(c.cfg) // checked by newClient
	o.IsClusterMode = true
	cluster := newServer(o)
	if !c.redis.CompareAndSwap(old, &cluster) {
		old = &cluster // another call was first
	}
	_ = (*old).Close()
}

// retryInterval is the time between retries in the background.
const retryInterval = 200 * time.Millisecond

// retry calls try in the background until it succeeds or lasting has passed, if a slot is free. The
// channel is closed once try succeeds. It is nil if no slot is free.
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

// check returns why Redis cannot be used, or nil.
func (c *client) check() error {
	if err := c.health.check(); err != nil {
		return errors.New("Redis: " + err.Error())
	}
	return nil
}

// close ends the background work. The client must not be used any more.
func (c *client) close() {
	c.cancel()
	c.work.Wait()
	_ = c.server().Close()
}
