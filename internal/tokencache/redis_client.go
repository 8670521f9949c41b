package tokencache

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
)

const (
	// redisBudget is by default how long a call waits for Redis before it goes straight to Atlas.
	redisBudget = 50 * time.Millisecond
	// redisTimeout bounds what nobody waits for, such as connecting, and what is tried again.
	redisTimeout = time.Second
	// lookInterval is how often it is tried to connect for the first time, and how often a sentinel is asked.
	lookInterval = time.Second
	// reloadInterval is how often a cluster is asked for its nodes.
	reloadInterval = 5 * time.Second
)

// redisServer is a Redis, or a cluster. It is what is used of [redis.UniversalClient], whose hundreds of methods would all have their
// types in the binary.
type redisServer interface {
	redis.Scripter
	io.Closer
	Process(ctx context.Context, cmd redis.Cmder) error
	PTTL(ctx context.Context, key string) *redis.DurationCmd
	Pipeline() redis.Pipeliner
}

// redisClient runs scripts within a budget, and leaves a Redis that fails alone for a while.
type redisClient struct {
	options   redisOptions
	budget    time.Duration
	metrics   *metrics
	health    redisHealth
	looks     *looks
	sentinels []*redis.SentinelClient // of these the first is asked first

	client atomic.Pointer[redisServer] // nil until Redis has answered for the first time

	ctx    context.Context // of everything that goes on in the background
	cancel context.CancelFunc
	work   sync.WaitGroup // of that
}

func newRedisClient(o redisOptions, budget time.Duration, m *metrics, log *slog.Logger) *redisClient {
	c := makeRedisClient(context.Background(), o)
	c.budget, c.metrics, c.health.log = budget, m, log
	c.work.Go(c.connect)
	c.looks = newLooks(c)
	return c
}

// makeRedisClient returns one that does not connect by itself. ctx ends whatever it does.
func makeRedisClient(ctx context.Context, o redisOptions) *redisClient {
	logging.Disable() // the library writes to stderr, in servers' words too
	c := &redisClient{options: o}
	if o.primary != "" {
		for _, addr := range o.Addrs {
			sentinel := o.Simple()
			sentinel.Addr, sentinel.DB = addr, 0
			c.sentinels = append(c.sentinels, redis.NewSentinelClient(sentinel))
		}
	}
	c.ctx, c.cancel = context.WithCancel(ctx)
	return c
}

// connect makes the first connection, however long that takes: a service that cannot reach Redis serves. Later ones are
// made by the client library, but which server is the primary is looked up as long as the service runs.
func (c *redisClient) connect() {
	for primary := ""; ; {
		first := c.client.Load() == nil
		var err error
		if primary, err = c.reach(primary); first {
			c.health.report(c.explain(err)) // later on, whoever needs Redis finds out
		}
		if err == nil && primary == "" || !sleep(c.ctx, lookInterval) {
			return
		}
	}
}

// explain finds out whether a connection broke because the server expects TLS, which is all that Redis says then.
func (c *redisClient) explain(err error) error {
	if err == nil || c.options.TLSConfig != nil || strings.HasPrefix(c.options.Addrs[0], "/") {
		return err
	}
	broken := errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(redisCause(err), errMalformed)
	if broken && speaksTLS(c.ctx, c.options.Addrs[0]) {
		return errSpeaksTLS
	}
	return err
}

// sleep reports whether ctx was still alive in the end.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// reach connects to what the URL stands for, unless that is the primary that it is connected to already. It returns the primary
// that it is connected to, if there are sentinels to say which that is.
func (c *redisClient) reach(present string) (primary string, err error) {
	ctx, cancel := context.WithTimeout(c.ctx, redisTimeout)
	defer cancel()
	o := c.options
	if len(c.sentinels) > 0 {
		if primary, err = c.ask(ctx); err != nil || primary == present {
			return present, err
		}
		o.Addrs = []string{primary}
	}
	client, err := openClient(ctx, o)
	if err != nil {
		return present, err
	}
	if old := c.client.Swap(&client); old != nil {
		_ = (*old).Close()
	}
	return primary, nil
}

// ask asks the sentinels for the primary's address. One that does not know goes last.
func (c *redisClient) ask(ctx context.Context) (addr string, err error) {
	for range c.sentinels {
		var answer []string
		answer, err = c.sentinels[0].GetMasterAddrByName(ctx, c.options.primary).Result()
		if err == nil && len(answer) == 2 {
			return net.JoinHostPort(answer[0], answer[1]), nil
		}
		c.sentinels = append(c.sentinels[1:], c.sentinels[0])
	}
	return "", cmp.Or[error](err, errMalformed)
}

// openClient returns a client of a Redis that answers.
func openClient(ctx context.Context, o redisOptions) (client redisServer, err error) {
	defer func() {
		if err != nil {
			_ = client.Close()
		}
	}()
	if !o.IsClusterMode {
		client = redis.NewClient(o.Simple())
		about := redis.NewMapStringInterfaceCmd(ctx, "HELLO") // which no ACL refuses
		switch err := client.Process(ctx, about); {
		case err != nil:
			return client, err
		case o.primary != "" && about.Val()["role"] != "master":
			return client, errNoPrimary
		case about.Val()["mode"] != "cluster":
			return client, nil
		}
		_ = client.Close() // one node is enough to find the others
	}
	cluster := o.Cluster()
	cluster.ClusterStateReloadInterval, cluster.DisableRoutingPolicies = reloadInterval, true
	client = redis.NewClusterClient(cluster)
	return client, client.PTTL(ctx, keyAll).Err() // somebody has to have the slot
}

// effort is how much a caller wants of Redis.
type effort int

const (
	usual   effort = iota // an answer within the budget, unless Redis has failed too often of late
	insist                // an answer within the budget, whatever happened before
	patient               // an answer within redisTimeout. It says nothing of how Redis is, which may be no worse than slow
)

// look runs scriptLook, together with the looks of others.
func (c *redisClient) look(ctx context.Context, keys []string, args ...any) (any, error) {
	return c.measure(ctx, "look", usual, func(time.Duration) (any, error) { return c.looks.run(ctx, keys, args) })
}

// do runs a script.
func (c *redisClient) do(ctx context.Context, op string, how effort, script *redis.Script, keys []string, args ...any) (any, error) {
	return c.measure(ctx, op, how, func(within time.Duration) (any, error) { return c.run(within, script, keys, args) })
}

// measure asks Redis, unless that is to be left alone. A caller with less time than the budget has ctx's. What it then does not get, or
// does not wait for, says nothing of how Redis is.
func (c *redisClient) measure(ctx context.Context, op string, how effort, ask func(within time.Duration) (any, error)) (any, error) {
	if how == usual && c.health.resting() {
		c.metrics.redis.WithLabelValues(op, "skipped").Inc()
		return nil, errResting
	}
	within, outcome := c.budget, "ok"
	if how == patient {
		within = redisTimeout
	}
	start := time.Now()
	deadline, ok := ctx.Deadline()
	hurried := ok && deadline.Before(start.Add(within))
	if hurried {
		within = deadline.Sub(start)
	}
	answer, err := ask(within)
	if err != nil && (hurried || ctx.Err() != nil) {
		return nil, err
	}
	if err != nil {
		outcome = "failed"
	}
	c.metrics.seconds.WithLabelValues(op).Observe(time.Since(start).Seconds())
	c.metrics.redis.WithLabelValues(op, outcome).Inc()
	if how != patient && !errors.Is(err, errConnecting) { // connect reports why
		c.health.report(err)
	}
	return answer, err
}

func (c *redisClient) run(within time.Duration, script *redis.Script, keys []string, args []any) (any, error) {
	client := c.client.Load()
	if client == nil {
		return nil, errConnecting
	}
	ctx, cancel := context.WithTimeout(c.ctx, within)
	defer cancel()
	answer, err := script.Run(ctx, *client, keys, args...).Result()
	if c.ctx.Err() != nil {
		err = errClosed
	}
	return answer, err
}

// retryInterval is how often what could not be done in Redis is tried again.
const retryInterval = 200 * time.Millisecond

// retry does try again in the background, for that long at most, if there is a slot for it. The channel is closed once it is
// done, and nil if there is no slot.
func (c *redisClient) retry(slots chan struct{}, lasting time.Duration, try func() error) <-chan struct{} {
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

// close ends what goes on in the background. Nobody may begin anything any more.
func (c *redisClient) close() {
	c.cancel()
	c.work.Wait()
	for _, sentinel := range c.sentinels {
		_ = sentinel.Close()
	}
	if client := c.client.Load(); client != nil {
		_ = (*client).Close()
	}
}
