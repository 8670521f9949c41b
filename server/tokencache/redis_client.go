package tokencache

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/redis/rueidis"
)

const (
	// redisBudget is by default how long a call waits for Redis before it goes straight to Atlas.
	redisBudget = 50 * time.Millisecond
	// redisTimeout bounds what goes on after the budget, such as connecting anew, and what is tried again.
	redisTimeout = time.Second
	// After breakerFailures in a row Redis is left alone for breakerDelay.
	breakerFailures = 5
	breakerDelay    = time.Second
)

// redisClient runs scripts within a budget, and leaves a Redis that fails alone for a while.
type redisClient struct {
	options rueidis.ClientOption
	budget  time.Duration
	metrics *metrics
	breaker circuitbreaker.CircuitBreaker[any]

	ctx    context.Context // of everything that goes on in the background
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool           // guarded by mu
	work   sync.WaitGroup // added to under mu, while not closed

	client atomic.Pointer[rueidis.Client] // nil until Redis has answered for the first time
	health redisHealth
}

var (
	errConnecting = errors.New("not connected yet")
	errSlow       = errors.New("no answer in time")
	errResting    = errors.New("left alone after several failures")
)

func newRedisClient(options rueidis.ClientOption, budget time.Duration, m *metrics, log *slog.Logger) *redisClient {
	c := &redisClient{
		options: options, budget: budget, metrics: m, health: redisHealth{log: log},
		breaker: circuitbreaker.NewBuilder[any]().WithFailureThreshold(breakerFailures).WithDelay(breakerDelay).Build(),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.spawn(c.connect)
	return c
}

// spawn runs f in the background, unless the client is closed.
func (c *redisClient) spawn(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.work.Go(f)
	}
	return !c.closed
}

// connect makes the first connection, however long that takes: a service that cannot reach Redis serves. Later ones are
// made by the client library itself.
func (c *redisClient) connect() {
	for {
		client, err := rueidis.NewClient(c.options)
		if err == nil {
			if c.ctx.Err() != nil {
				client.Close()
				return
			}
			c.client.Store(&client)
			c.health.connected()
			return
		}
		c.health.report(err)
		select {
		case <-time.After(breakerDelay):
		case <-c.ctx.Done():
			return
		}
	}
}

// run runs a script unless Redis has failed too often of late. It returns within the budget; the script may still run
// after that.
func (c *redisClient) run(name string, script *rueidis.Lua, keys, args []string) (rueidis.RedisMessage, error) {
	if !c.breaker.TryAcquirePermit() {
		c.metrics.redis.WithLabelValues(name, "skipped").Inc()
		return rueidis.RedisMessage{}, errResting
	}
	return c.insist(name, script, keys, args)
}

// insist is run whatever happened before.
func (c *redisClient) insist(name string, script *rueidis.Lua, keys, args []string) (rueidis.RedisMessage, error) {
	message, err := c.exec(c.budget, script, keys, args)
	if err != nil {
		c.breaker.RecordFailure()
	} else {
		c.breaker.RecordSuccess()
	}
	c.count(name, err)
	c.health.report(err)
	return message, err
}

// retry is insist with time: the caller waits anyway, and Redis may be no worse than slow.
func (c *redisClient) retry(name string, script *rueidis.Lua, keys, args []string) (rueidis.RedisMessage, error) {
	message, err := c.exec(redisTimeout, script, keys, args)
	c.count(name, err)
	return message, err
}

func (c *redisClient) count(name string, err error) {
	outcome := "ok"
	if err != nil {
		outcome = "failed"
	}
	c.metrics.redis.WithLabelValues(name, outcome).Inc()
}

func (c *redisClient) exec(budget time.Duration, script *rueidis.Lua, keys, args []string) (rueidis.RedisMessage, error) {
	client := c.client.Load()
	if client == nil {
		return rueidis.RedisMessage{}, errConnecting
	}
	type answer struct {
		message rueidis.RedisMessage
		err     error
	}
	answered := make(chan answer, 1)
	// In a goroutine of its own, because the library waits for a connection that is being made whatever the context says.
	if !c.spawn(func() {
		ctx, cancel := context.WithTimeout(c.ctx, redisTimeout)
		defer cancel()
		message, err := script.Exec(ctx, *client, keys, args).ToMessage()
		answered <- answer{message, err}
	}) {
		return rueidis.RedisMessage{}, errClosed
	}
	late := time.NewTimer(budget)
	defer late.Stop()
	select {
	case a := <-answered:
		return a.message, a.err
	case <-late.C:
		return rueidis.RedisMessage{}, errSlow
	case <-c.ctx.Done():
		return rueidis.RedisMessage{}, errClosed
	}
}

func (c *redisClient) close() {
	c.cancel()
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.work.Wait()
	if client := c.client.Load(); client != nil {
		(*client).Close()
	}
}
