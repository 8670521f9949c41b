package redis

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
)

// maxWait is far more than a call may wait for Redis, and far less than Redis takes in these tests.
const maxWait = 2 * time.Second

// mustNotWait fails the test if f takes long.
func mustNotWait(t *testing.T, what string, call func()) {
	t.Helper()
	start := time.Now()
	call()
	if took := time.Since(start); took > maxWait {
		t.Errorf("%s took %v", what, took)
	}
}

func TestFault55RedisDown(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t), newFakeAtlas()
	server.Stop()
	r := newReplica(t, w, server.URL(), Config{})
	u := user{orgA, "u"}
	for range 3 {
		mustNotWait(t, "a create", func() { r.wantMiss(u) })
	}
	up := func() bool { return r.counted("tokend_cache_redis_up") == 1 }
	if r.Check() == nil || up() {
		t.Errorf("Check says %v, the metric %v", r.Check(), up())
	}
	server.Restart()
	r.eventually("Redis is not used though it is back", func() bool { return r.hits(u) && r.Check() == nil && up() })
	server.Stop()
	for range 20 {
		mustNotWait(t, "a create", func() { r.wantMiss(u) })
	}
}

func TestFault56RedisSlow(t *testing.T) {
	t.Parallel()
	for name, slow := range map[string]func(*redistest.Server, *redistest.Proxy){
		"answers late": func(_ *redistest.Server, p *redistest.Proxy) { p.Delay(500 * time.Millisecond) },
		"hangs":        func(s *redistest.Server, _ *redistest.Proxy) { s.Pause() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, w := redistest.Start(t), newFakeAtlas()
			proxy := server.NewProxy()
			r := newReplicaWith(t, w, Config{URL: proxy.URL()}).connected()
			u := user{orgA, "u"}
			r.eventually("nothing is cached", func() bool { return r.hits(u) })
			slow(server, proxy)
			start := time.Now()
			mustNotWait(t, "a create", func() { r.wantMiss(u) })
			if took := time.Since(start); took < defaultBudget {
				t.Errorf("a create took %v: it did not wait for Redis", took)
			}
			for range 2 * restAfter {
				mustNotWait(t, "a create", func() { r.wantMiss(u) })
			}
			if r.counted("tokend_cache_redis_operations_total", "look", "skipped") == 0 {
				t.Error("Redis is not skipped")
			}
			server.Resume()
			proxy.Delay(0)
			r.eventually("Redis is not used though it is quick again", func() bool { return r.hits(u) })
		})
	}
}

// TestFault56CallersInAHurry answers a caller with less time than the budget, or one that leaves,
// in time. That is not a failure of Redis.
func TestFault56CallersInAHurry(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	r := newReplica(t, newFakeAtlas(), server.URL(), Config{}).connected()
	server.Pause()
	t.Cleanup(server.Resume)
	for range 2 * restAfter {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		mustNotWait(t, "a read", func() { _, _ = r.Get(ctx, user{orgA, "u"}.item()) })
		cancel()
	}
	if err := r.Check(); err != nil {
		t.Errorf("Redis is said to fail: %v", err)
	}
}

// TestFault56RedisHangsFromTheStart starts and stops in time if Redis accepts connections and does
// not answer.
func TestFault56RedisHangsFromTheStart(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	server.Pause()
	defer server.Resume()
	r := newReplica(t, newFakeAtlas(), server.URL(), Config{})
	mustNotWait(t, "a create", func() { r.wantMiss(user{orgA, "u"}) })
	mustNotWait(t, "Close", r.Close)
}

func TestFault57ReaderCutOff(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t), newFakeAtlas()
	proxy := server.NewProxy()
	cut, other := newReplica(t, w, proxy.URL(), Config{}).connected(), newReplica(t, w, server.URL(), Config{}).connected()
	u := user{orgA, "u"}
	cut.wantMiss(u)
	proxy.Cut()
	mustNotWait(t, "a create", func() { cut.wantMiss(u) })
	other.wantHit(u)
	other.delete(orgA)
	mustNotWait(t, "a create", func() { cut.wantMiss(u) })
	other.wantMiss(u)
	proxy.Restore()
	cut.eventually("Redis is not used though it can be reached", func() bool { return cut.hits(u) })
	cut.wantHit(u)
}

func TestFault57DeleterCutOff(t *testing.T) {
	t.Parallel()
	const ttl, stale = 200 * time.Millisecond, 200 * time.Millisecond
	server, w := redistest.Start(t), newFakeAtlas()
	proxy := server.NewProxy()
	o := Config{TTL: ttl, StaleIfError: stale}
	cut, other := newReplica(t, w, proxy.URL(), o).connected(), newReplica(t, w, server.URL(), o).connected()
	proxy.Cut()
	u := user{orgA, "u"}
	other.wantMiss(u)
	start := time.Now()
	cut.delete(orgA)
	if took := time.Since(start); took < ttl+stale {
		t.Errorf("acknowledged after %v, while copies live for %v", took, ttl+stale)
	}
	if found, _ := other.Get(t.Context(), u.item()); found.Token != "" {
		t.Errorf("after the delete was acknowledged: %q", found.Token)
	}
}

func TestFault57DeleterReachesRedisAgain(t *testing.T) {
	t.Parallel()
	for name, trouble := range map[string]func(*redistest.Proxy) (restore func()){
		"cut": func(p *redistest.Proxy) func() { p.Cut(); return p.Restore },
		// Slower than any create waits.
		"slow": func(p *redistest.Proxy) func() { p.Delay(2 * defaultBudget); return func() {} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, w := redistest.Start(t), newFakeAtlas()
			proxy := server.NewProxy()
			r := newReplicaWith(t, w, Config{URL: proxy.URL()}).connected()
			other := newReplica(t, w, server.URL(), Config{}).connected()
			u := user{orgA, "u"}
			other.wantMiss(u)
			restore := trouble(proxy)
			sent, done := make(chan struct{}), make(chan error, 1)
			go func() { done <- r.deleteAnd(t.Context(), orgA, Done, func() { close(sent) }) }()
			<-sent
			restore()
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("not acknowledged though Redis can be reached")
			}
			other.wantMiss(u)
		})
	}
}

// TestFault57DeleterRunsOutOfTime moves the fence after the caller has left.
func TestFault57DeleterRunsOutOfTime(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t), newFakeAtlas()
	proxy := server.NewProxy()
	cut, other := newReplica(t, w, proxy.URL(), Config{}).connected(), newReplica(t, w, server.URL(), Config{}).connected()
	u := user{orgA, "u"}
	other.wantMiss(u)
	proxy.Cut()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := cut.deleteAnd(ctx, orgA, Done, func() {}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want DeadlineExceeded", err)
	}
	proxy.Restore()
	other.eventually("the deleted token lives on", func() bool {
		token, _ := other.create(u)
		return token == w.token(orgA)
	})
}

// TestFault57RetriesAreBounded bounds the retries. With all slots taken, a delete still waits
// before it is acknowledged.
func TestFault57RetriesAreBounded(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	server.Stop()
	r := newReplica(t, newFakeAtlas(), server.URL(), Config{})
	for range 2 * maxLateMoves {
		_ = r.deleteAnd(t.Context(), orgA, NotDone, func() {})
	}
	if n := len(r.lateMoves); n != 0 {
		t.Errorf("%d moves of deletes that were not carried out are retried", n)
	}
	for range 2 * maxLateMoves {
		_ = r.deleteAnd(t.Context(), orgA, Unknown, func() {})
		r.Drop(t.Context(), user{orgA, "u"}.item())
	}
	if moves, drops := len(r.lateMoves), len(r.lateDrops); moves != maxLateMoves || drops != maxLateDrops {
		t.Errorf("%d moves and %d drops are retried, want %d and %d", moves, drops, maxLateMoves, maxLateDrops)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if r.deleteAnd(ctx, orgA, Done, func() {}) == nil {
		t.Error("acknowledged without Redis")
	}
}

// TestFault57CloseWhileADeleteWaits ends a waiting delete with an error.
func TestFault57CloseWhileADeleteWaits(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	server.Stop()
	r := newReplica(t, newFakeAtlas(), server.URL(), Config{})
	sent, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- r.deleteAnd(t.Context(), orgA, Done, func() { close(sent) }) }()
	<-sent
	r.client.cancel()
	if err := <-done; err == nil {
		t.Error("acknowledged without Redis")
	}
}

// TestFault58RedisFull makes deletes wait until cached values have expired if Redis accepts no
// writes.
func TestFault58RedisFull(t *testing.T) {
	t.Parallel()
	const ttl = 300 * time.Millisecond
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{TTL: ttl}).connected()
	u := user{orgA, "u"}
	r.wantMiss(u)
	start := time.Now()
	server.Command("CONFIG", "SET", "maxmemory", "1")
	r.delete(orgA)
	if took := time.Since(start); took < ttl {
		t.Errorf("acknowledged after %v, while copies live for %v", took, ttl)
	}
	r.wantMiss(u)
}

// TestFault84OneLateAnswerIsOneFailure counts a late answer that eight callers wait for as one
// failure, and goes on using Redis.
func TestFault84OneLateAnswerIsOneFailure(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplicaWith(t, w, Config{URL: server.URL()}).connected()
	u := user{orgA, "u"}
	r.eventually("no hit without a failure before", func() bool { return r.hits(u) && r.Check() == nil })
	server.Pause()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if found, _ := r.Get(t.Context(), u.item()); found.Token != "" {
				t.Error("answered by a Redis that is stopped")
			}
		})
	}
	all.Wait()
	server.Resume()
	if n := r.client.health.failures; n != 1 {
		t.Errorf("%d failures, want 1", n)
	}
	if n := r.counted("tokend_cache_redis_operations_total", "look", "skipped"); n != 0 {
		t.Errorf("%v reads were skipped", n)
	}
}

// TestFault84ScriptFlush sends the script again with the next reads, which are all answered.
func TestFault84ScriptFlush(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{}).connected()
	users := make([]user, 2*maxBatch)
	for i := range users {
		users[i] = user{fmt.Sprintf("org %d", i), "u"}
		r.wantMiss(users[i])
	}
	for range 3 {
		server.Command("SCRIPT", "FLUSH")
		var all sync.WaitGroup
		for _, u := range users {
			all.Go(func() { r.wantHit(u) })
		}
		all.Wait()
	}
	if n := r.counted("tokend_cache_redis_operations_total", "look", "failed"); n != 0 {
		t.Errorf("%v reads failed", n)
	}
}

// TestBatcherPanic fails the reads of one batch if the client library panics.
func TestBatcherPanic(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{}).connected()
	for range 2 * batches {
		if _, err := r.client.batcher.read(t.Context(), nil, []any{panics{}}); !errors.Is(err, errMalformed) {
			t.Fatalf("got %v, want errMalformed", err)
		}
	}
	u := user{orgA, "u"}
	r.wantMiss(u)
	r.wantHit(u)
}

// panics is an argument that panics when it is sent.
type panics struct{}

func (panics) MarshalBinary() ([]byte, error) { panic("it") }
