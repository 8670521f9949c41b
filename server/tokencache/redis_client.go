package tokencache

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/redis/rueidis"
)

// RedisConfig says which Redis or Valkey replicas share.
type RedisConfig struct {
	// URL is redis://HOST:PORT, rediss:// for TLS, or unix:///PATH. It may have a user name, a database as /N, more
	// addresses of a cluster as ?addr=HOST:PORT, and the name of Sentinel's master as ?master_set=NAME. Required.
	URL string
	// Password returns the present password. If nil, there is none. It is never a part of the URL.
	Password func() string
	// RootCAs returns the authorities to believe for rediss. If nil, they are the system's.
	RootCAs func() *x509.CertPool
}

const (
	// redisBudget is how long a call waits for Redis before it goes straight to Atlas.
	redisBudget = 50 * time.Millisecond
	// redisTimeout bounds what goes on after the budget: connecting anew takes longer.
	redisTimeout = time.Second
	// After breakerFailures in a row Redis is left alone for breakerDelay.
	breakerFailures = 5
	breakerDelay    = time.Second
)

// RedisURLError is what is wrong with the URL of a RedisConfig. It never quotes it.
type RedisURLError struct{ reason string }

func (e *RedisURLError) Error() string { return e.reason }

// options is what the client library makes of c.
func (c *RedisConfig) options() (rueidis.ClientOption, error) {
	wrong := func(reason string) (rueidis.ClientOption, error) {
		return rueidis.ClientOption{}, &RedisURLError{reason}
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		return wrong("it is not a URL: give one such as redis://HOST:6379, or rediss:// for TLS")
	}
	if _, has := u.User.Password(); has {
		return wrong("it has a password in it, for everybody to see who lists processes: give the password in a file")
	}
	for name := range u.Query() {
		if name != "addr" && name != "master_set" {
			return wrong("it has a parameter that is not addr or master_set")
		}
	}
	opt, err := rueidis.ParseURL(c.URL)
	if err != nil || u.Scheme != "unix" && u.Hostname() == "" {
		return wrong("it is not one of redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH")
	}
	opt.DisableCache = true // a copy in our memory would be read apart from its fence
	opt.DisableRetry = true // a call that waits goes to Atlas instead
	opt.ClientName = "tokend"
	opt.Dialer = net.Dialer{Timeout: redisTimeout, KeepAlive: 5 * time.Second}
	opt.ConnWriteTimeout = redisTimeout
	if c.Password != nil {
		user := opt.Username
		opt.AuthCredentialsFn = func(rueidis.AuthCredentialsContext) (rueidis.AuthCredentials, error) {
			return rueidis.AuthCredentials{Username: user, Password: c.Password()}, nil
		}
	}
	if opt.TLSConfig != nil && c.RootCAs != nil {
		opt.DialCtxFn = func(ctx context.Context, addr string, dialer *net.Dialer, cfg *tls.Config) (net.Conn, error) {
			cfg = cfg.Clone()
			cfg.RootCAs = c.RootCAs() // as they are now
			return (&tls.Dialer{NetDialer: dialer, Config: cfg}).DialContext(ctx, "tcp", addr)
		}
	}
	return opt, nil
}

// redisClient runs scripts within a budget, and leaves a Redis that fails alone for a while.
type redisClient struct {
	options rueidis.ClientOption
	metrics *metrics
	log     *slog.Logger
	breaker circuitbreaker.CircuitBreaker[any]

	ctx    context.Context // of everything that goes on in the background
	cancel context.CancelFunc
	work   sync.WaitGroup

	client atomic.Pointer[rueidis.Client] // nil until Redis has answered for the first time
	failed atomic.Pointer[error]          // why the last operation failed, nil if it did not
}

var (
	errConnecting = errors.New("not connected yet")
	errSlow       = fmt.Errorf("no answer within %v", redisBudget)
	errResting    = errors.New("left alone after several failures")
)

func newRedisClient(options rueidis.ClientOption, m *metrics, log *slog.Logger) *redisClient {
	c := &redisClient{
		options: options, metrics: m, log: log,
		breaker: circuitbreaker.NewBuilder[any]().WithFailureThreshold(breakerFailures).WithDelay(breakerDelay).Build(),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.work.Go(c.connect)
	return c
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
			c.report(nil)
			return
		}
		c.report(err)
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
	message, err := c.exec(script, keys, args)
	if err != nil {
		c.breaker.RecordFailure()
		c.metrics.redis.WithLabelValues(name, "failed").Inc()
	} else {
		c.breaker.RecordSuccess()
		c.metrics.redis.WithLabelValues(name, "ok").Inc()
	}
	c.report(err)
	return message, err
}

func (c *redisClient) exec(script *rueidis.Lua, keys, args []string) (rueidis.RedisMessage, error) {
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
	c.work.Go(func() {
		ctx, cancel := context.WithTimeout(c.ctx, redisTimeout)
		defer cancel()
		message, err := script.Exec(ctx, *client, keys, args).ToMessage()
		answered <- answer{message, err}
	})
	budget := time.NewTimer(redisBudget)
	defer budget.Stop()
	select {
	case a := <-answered:
		return a.message, a.err
	case <-budget.C:
		return rueidis.RedisMessage{}, errSlow
	case <-c.ctx.Done():
		return rueidis.RedisMessage{}, errClosed
	}
}

// report notes how Redis is and logs the changes.
func (c *redisClient) report(err error) {
	switch {
	case err == nil:
		if c.failed.Swap(nil) != nil {
			c.log.Info("Redis answers again")
		}
	case c.ctx.Err() == nil:
		if c.failed.Swap(&err) == nil {
			c.log.Warn("Redis fails: creates go straight to Atlas, and deletes wait until remembered copies have expired", slog.String("cause", err.Error()))
		}
	}
}

func (c *redisClient) check() error {
	if err := c.failed.Load(); err != nil {
		return fmt.Errorf("Redis: %w", *err) //nolint:staticcheck,revive // a name
	}
	return nil
}

func (c *redisClient) close() {
	c.cancel()
	c.work.Wait()
	if client := c.client.Load(); client != nil {
		(*client).Close()
	}
}
