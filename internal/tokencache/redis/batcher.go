package redis

import (
	"context"
	"time"

	goredis "github.com/redis/go-redis/v9"
)

const (
	// batches is how many batches may be in flight: with a second one, a read that arrives just
	// after the first was sent does not wait for its answer.
	batches = 2
	// maxBatch bounds one batch: Redis takes some 20 µs for each read.
	maxBatch = 128
)

// batcher sends concurrent reads in one pipeline, which takes a third of the CPU time of single
// reads (BenchmarkParallelHitsInRedis). A read that arrives while no batch is in flight does not
// wait for others. (The library's AutoPipeline ignores the deadline of a command.)
type batcher struct {
	client *client
	reads  chan *read
}

// read is one run of scriptRead.
type read struct {
	ctx    context.Context // of its caller
	began  time.Time
	keys   []string
	args   []any
	done   chan struct{} // closed at the end
	answer any           // valid after done
	err    error         // valid after done
}

// newBatcher runs until client is closed.
func newBatcher(client *client) *batcher {
	b := &batcher{client: client, reads: make(chan *read)}
	for range batches {
		client.work.Go(b.work)
	}
	return b
}

// read waits for the answer to one read, within the client's budget and for no longer than ctx
// lasts.
func (b *batcher) read(ctx context.Context, keys []string, args []any) (any, error) {
	r := &read{ctx: ctx, began: time.Now(), keys: keys, args: args, done: make(chan struct{})}
	reads := b.reads
	for {
		select {
		case reads <- r:
			reads = nil // sent once
		case <-r.done:
			return r.answer, r.err
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-b.client.ctx.Done():
			return nil, errClosed
		}
	}
}

func (b *batcher) work() {
	for {
		select {
		case <-b.client.ctx.Done():
			return
		case first := <-b.reads:
			b.send(b.gather(first))
		}
	}
}

// gather returns first and the reads that already wait.
func (b *batcher) gather(first *read) []*read {
	batch := []*read{first}
	for len(batch) < maxBatch {
		select {
		case r := <-b.reads:
			batch = append(batch, r)
		default:
			return batch
		}
	}
	return batch
}

// send answers a batch. No caller could recover a panic of the client library here, so it counts as
// an answer that cannot be read.
func (b *batcher) send(batch []*read) {
	defer func() {
		broken := recover() != nil
		for _, r := range batch {
			if broken {
				r.answer, r.err = nil, errMalformed
			}
			close(r.done)
		}
	}()
	// One deadline for the batch: a timer for each read costs more than it gains.
	ctx, cancel := context.WithDeadline(b.client.ctx, batch[0].began.Add(b.client.budget))
	defer cancel()
	missing := run(ctx, b.client.server(), batch, scriptRead.EvalSha)
	if len(missing) > 0 { // Redis has lost the script
		run(ctx, b.client.server(), missing, scriptRead.Eval)
	}
}

// run sends a batch in one pipeline, and returns the reads for which Redis did not have the script.
func run(ctx context.Context, s server, batch []*read, eval func(context.Context, goredis.Scripter, []string, ...any) *goredis.Cmd) (missing []*read) {
	pipeline := s.Pipeline()
	answers := make([]*goredis.Cmd, len(batch))
	for i, r := range batch {
		if r.err = r.ctx.Err(); r.err == nil {
			answers[i] = eval(ctx, pipeline, r.keys, r.args...)
		}
	}
	_, _ = pipeline.Exec(ctx) // each has its own error
	for i, r := range batch {
		if answers[i] == nil {
			continue
		}
		r.answer, r.err = answers[i].Result()
		if goredis.HasErrorPrefix(r.err, "NOSCRIPT") {
			missing = append(missing, r)
		}
	}
	return missing
}
