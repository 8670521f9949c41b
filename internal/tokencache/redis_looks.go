package tokencache

import (
	"context"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// lookers are how many pipelines of looks are on their way at a time: with a second one, a look that comes when one has just
	// left need not wait for its answer.
	lookers = 2
	// mostLooks bounds one pipeline: Redis takes some 20 µs for each.
	mostLooks = 128
)

// looks sends the looks of callers who come at about the same time in one pipeline: together they cost one connection, one write and
// one read, which is most of what each costs alone. A look that comes while no pipeline is on its way waits for nobody.
type looks struct {
	client *redisClient
	wake   chan struct{} // for each looker one, if there is something to do

	mu      sync.Mutex
	waiting []*look // guarded by mu; in the order in which they came
}

// look is one run of scriptLook.
type look struct {
	ctx    context.Context // of its caller
	since  time.Time
	keys   []string
	args   []any
	done   chan struct{} // closed at the end
	answer any           // valid after done
	err    error         // valid after done
}

// newLooks has as many goroutines at work as there are lookers, until client is closed.
func newLooks(client *redisClient) *looks {
	l := &looks{client: client, wake: make(chan struct{}, lookers)}
	for range lookers {
		client.work.Go(l.work)
	}
	return l
}

// run waits for the answer to one look, within the client's budget and for no longer than ctx lasts.
func (l *looks) run(ctx context.Context, keys []string, args []any) (any, error) {
	one := &look{ctx: ctx, since: time.Now(), keys: keys, args: args, done: make(chan struct{})}
	l.mu.Lock()
	l.waiting = append(l.waiting, one)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default: // everybody has been woken, and will look for more
	}
	select {
	case <-one.done:
		return one.answer, one.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-l.client.ctx.Done():
		return nil, errClosed
	}
}

func (l *looks) work() {
	for {
		select {
		case <-l.client.ctx.Done():
			return
		case <-l.wake:
		}
		for batch := l.take(); len(batch) > 0; batch = l.take() {
			l.ask(batch)
		}
	}
}

func (l *looks) take() []*look {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(len(l.waiting), mostLooks)
	batch := l.waiting[:n:n]
	if l.waiting = l.waiting[n:]; len(l.waiting) == 0 {
		l.waiting = nil
	}
	return batch
}

// ask answers a batch. Nobody could recover a panic of the client library's here, so it is an answer that cannot be read.
func (l *looks) ask(batch []*look) {
	if protect(func() { l.send(batch) }) != nil {
		fail(batch, errMalformed)
	}
	for _, one := range batch {
		close(one.done)
	}
}

// send asks Redis, in the time that the first of a batch has left.
func (l *looks) send(batch []*look) {
	client := l.client.client.Load()
	if client == nil {
		fail(batch, errConnecting)
		return
	}
	ctx, cancel := context.WithDeadline(l.client.ctx, batch[0].since.Add(l.client.budget))
	defer cancel()
	if ctx.Err() != nil { // the one before it has taken too long
		fail(batch, errSlow)
		return
	}
	pipeline := (*client).Pipeline()
	answers := make([]*redis.Cmd, len(batch))
	for i, one := range batch {
		if one.err = one.ctx.Err(); one.err == nil {
			answers[i] = scriptLook.EvalSha(ctx, pipeline, one.keys, one.args...)
		}
	}
	_, _ = pipeline.Exec(ctx) // each has its own error
	for i, one := range batch {
		if answers[i] == nil {
			continue
		}
		one.answer, one.err = answers[i].Result()
		if redis.HasErrorPrefix(one.err, "NOSCRIPT") { // Redis has been restarted, or is another one
			one.answer, one.err = scriptLook.Eval(ctx, *client, one.keys, one.args...).Result()
		}
	}
}

func fail(batch []*look, err error) {
	for _, one := range batch {
		one.answer, one.err = nil, err
	}
}
