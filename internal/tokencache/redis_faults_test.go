package tokencache

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
)

// maxWait is far more than a call may wait for Redis, and far less than Redis takes in these tests: the machine may be busy.
const maxWait = time.Second

// mustNotWait runs a call that has no reason to take long.
func mustNotWait(t *testing.T, what string, call func()) {
	t.Helper()
	start := time.Now()
	call()
	if took := time.Since(start); took > maxWait {
		t.Errorf("%s took %v", what, took)
	}
}

func TestFault55RedisDown(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	server.Stop()
	r := newReplica(t, w, server.URL(), Config{TTL: time.Hour})
	jwt := newJWT(orgA, "u", time.Time{})
	for range 3 {
		mustNotWait(t, "a create", func() { r.wantMiss(jwt) })
	}
	up := func() float64 {
		families, err := r.registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "tokend_cache_redis_up" {
				return f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		return -1
	}
	if r.Check() == nil || up() != 0 {
		t.Errorf("Check says %v, the metric %v", r.Check(), up())
	}
	hits := func() bool {
		_, status := r.token(jwt)
		return status.Hit
	}
	for range 2 {
		server.Restart()
		r.eventually("Redis is not used though it is back", hits)
		r.eventually("Check does not know that Redis is back", func() bool { return hits() && r.Check() == nil && up() == 1 })
		server.Stop()
		for range 20 {
			mustNotWait(t, "a create", func() { r.wantMiss(jwt) })
		}
	}
}

func TestFault56RedisSlow(t *testing.T) {
	t.Parallel()
	for name, slow := range map[string]func(*redistest.Server, *redistest.Proxy){
		"answers late": func(_ *redistest.Server, p *redistest.Proxy) { p.Delay(5 * time.Second) },
		"hangs":        func(s *redistest.Server, _ *redistest.Proxy) { s.Pause() },
	} {
		t.Run(name, func(t *testing.T) {
			server, w := redistest.Start(t), newFakeAtlas()
			proxy := server.NewProxy()
			r := newReplica(t, w, proxy.URL(), Config{Redis: &RedisConfig{}}).connected()
			jwt := newJWT(orgA, "u", time.Time{})
			r.eventually("nothing is remembered", func() bool {
				_, status := r.token(jwt)
				return status.Hit
			})
			slow(server, proxy)
			shortest := time.Hour
			for range 4 {
				start := time.Now()
				mustNotWait(t, "a create", func() { r.wantMiss(jwt) })
				shortest = min(shortest, time.Since(start))
			}
			if shortest < redisBudget {
				t.Errorf("a create took %v: it did not wait for Redis", shortest)
			}
			// A look only, since nothing can be filled under what was not seen.
			if limit := redisBudget + 100*time.Millisecond; shortest > limit {
				t.Errorf("no create took less than %v, want about %v", shortest, redisBudget)
			}
			for range 10 {
				mustNotWait(t, "a create", func() { r.wantMiss(jwt) })
			}
			if r.counted("tokend_cache_redis_operations_total", "look", "skipped") == 0 {
				t.Error("Redis is not left alone")
			}
			server.Resume()
			proxy.Delay(0)
			r.eventually("Redis is not used though it is quick again", func() bool {
				_, status := r.token(jwt)
				return status.Hit
			})
		})
	}
}

// A Redis that takes a connection and says nothing holds up neither the start nor the stop.
// A caller with less time than the budget is answered in that, and Redis is not blamed for it.
func TestFault56CallersInAHurry(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{Redis: &RedisConfig{Budget: time.Second}}).connected()
	server.Pause()
	t.Cleanup(server.Resume)
	for i := range 2 * restAfter {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		start := time.Now()
		jwt := newJWT(orgA, fmt.Sprint(i), time.Time{})
		_, err := r.Create(ctx, own(jwt), false, w.ask(jwt))
		cancel()
		// This Atlas is so quick that it may still be in time.
		if took := time.Since(start); err != nil && !errors.Is(err, context.DeadlineExceeded) || took > 500*time.Millisecond {
			t.Errorf("%v after %v, want an answer or DeadlineExceeded after 20ms", err, took)
		}
	}
	if err := r.Check(); err != nil {
		t.Errorf("Redis is said to fail: %v", err)
	}
}

func TestFault56RedisHangsFromTheStart(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	server.Pause()
	defer server.Resume()
	r := newReplica(t, w, server.URL(), Config{})
	mustNotWait(t, "a create", func() { r.wantMiss(newJWT(orgA, "u", time.Time{})) })
	start := time.Now()
	r.Close()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("Close took %v", took)
	}
}

func TestFault57ReaderCutOff(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	proxy := server.NewProxy()
	cut := newReplica(t, w, proxy.URL(), Config{}).connected()
	other := newReplica(t, w, server.URL(), Config{}).connected()
	jwt := newJWT(orgA, "u", time.Time{})
	cut.wantMiss(jwt)
	proxy.Cut()
	mustNotWait(t, "a create", func() { cut.wantMiss(jwt) })
	other.wantHit(jwt)
	other.delete(jwt)
	mustNotWait(t, "a create", func() { cut.wantMiss(jwt) })
	other.wantMiss(jwt)
	proxy.Mend()
	cut.eventually("Redis is not used though the way is mended", func() bool {
		_, status := cut.token(jwt)
		return status.Hit
	})
	cut.wantHit(jwt)
}

func TestFault57DeleterCutOff(t *testing.T) {
	const ttl, kept = 700 * time.Millisecond, 800 * time.Millisecond
	server, w := redistest.Start(t), newFakeAtlas()
	proxy := server.NewProxy()
	cfg := Config{TTL: ttl, StaleIfError: kept}
	cut := newReplica(t, w, proxy.URL(), cfg).connected()
	other := newReplica(t, w, server.URL(), cfg).connected()
	jwt := newJWT(orgA, "u", time.Time{})
	proxy.Cut()
	other.wantMiss(jwt)
	old, start := w.token(orgA), time.Now()
	cut.delete(jwt)
	if took := time.Since(start); took < ttl+kept {
		t.Errorf("acknowledged after %v, while copies live for %v", took, ttl+kept)
	}
	w.failing(statusError(atlas.OpCreate, 503))
	if token, err := other.create(jwt); err == nil {
		t.Errorf("after the delete was acknowledged: %q, the deleted one: %v", string(token.Token), token.Token == old)
	}
}

func TestFault57DeleterIsAcknowledgedWhenTheWayIsMended(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	for name, trouble := range map[string]func(*redistest.Proxy) (mend func()){
		"cut": func(p *redistest.Proxy) func() { p.Cut(); return p.Mend },
		// Slower than any create would wait for, for good.
		"slow": func(p *redistest.Proxy) func() { p.Delay(2 * redisBudget); return func() {} },
	} {
		t.Run(name, func(t *testing.T) {
			proxy := server.NewProxy()
			r := newReplica(t, w, proxy.URL(), Config{Redis: &RedisConfig{}}).connected()
			other := newReplica(t, w, server.URL(), Config{TTL: time.Hour}).connected()
			jwt := newJWT(orgA, name, time.Time{})
			other.wantMiss(jwt)
			mend := trouble(proxy)
			sent, done := make(chan struct{}), make(chan error, 1)
			go func() {
				done <- r.Delete(t.Context(), own(jwt), func(ctx context.Context) (atlas.JWT, error) {
					defer close(sent)
					return w.send(jwt)(ctx)
				})
			}()
			<-sent
			if name == "cut" {
				select {
				case err := <-done:
					t.Errorf("acknowledged (%v) while cut off", err)
				case <-time.After(4 * retryInterval):
				}
			}
			mend()
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("not acknowledged though Redis can be reached")
			}
			other.wantMiss(jwt)
		})
	}
}

func TestFault57DeleterRunsOutOfTime(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	proxy := server.NewProxy()
	cut := newReplica(t, w, proxy.URL(), Config{TTL: time.Hour}).connected()
	other := newReplica(t, w, server.URL(), Config{TTL: time.Hour}).connected()
	jwt := newJWT(orgA, "u", time.Time{})
	other.wantMiss(jwt)
	proxy.Cut()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := cut.Delete(ctx, own(jwt), w.send(jwt))
	if _, ok := errors.AsType[*UnsettledError](err); !ok || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want an UnsettledError of DeadlineExceeded", err)
	}
	// It goes on without the caller.
	proxy.Mend()
	other.eventually("the deleted token lives on", func() bool {
		token, _ := other.token(jwt)
		return token == w.token(orgA)
	})
}

// A refused delete has deleted nothing, so nobody waits and nothing goes on: anybody can have deletes refused.
func TestFault57RefusedDeletesLeaveNothingBehind(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	server.Stop()
	r := newReplica(t, w, server.URL(), Config{TTL: time.Hour})
	refused := statusError(atlas.OpDelete, 401)
	for i := range 500 {
		jwt := newJWT(orgA, fmt.Sprint(i), time.Time{})
		mustNotWait(t, "a delete", func() {
			if err := r.Delete(t.Context(), own(jwt), func(context.Context) (atlas.JWT, error) { return jwt, refused }); !errors.Is(err, refused) {
				t.Errorf("got %v, want the refusal", err)
			}
		})
	}
	s := r.caching.store.(*redisStore)
	if moves, drops := len(s.lateMoves), len(s.lateDrops); moves != 0 || drops > maxLateDrops {
		t.Errorf("%d moves and %d drops go on", moves, drops)
	}
	unknown := statusError(atlas.OpDelete, 504)
	r.accept(newJWT(orgA, "u", time.Time{}))
	for range 2 * maxLateMoves {
		r.deleteAnd(newJWT(orgA, "u", time.Time{}), unknown)
	}
	if n := len(s.lateMoves); n != maxLateMoves {
		t.Errorf("%d moves go on, want %d", n, maxLateMoves)
	}
	// With all of them taken, a delete still waits rather than lie.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	jwt := newJWT(orgA, "u", time.Time{})
	if _, ok := errors.AsType[*UnsettledError](r.Delete(ctx, own(jwt), w.send(jwt))); !ok {
		t.Error("acknowledged without Redis")
	}
}

// Close ends a delete that waits, and says that it is not settled.
func TestFault57CloseWhileADeleteWaits(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	server.Stop()
	r := newReplica(t, w, server.URL(), Config{TTL: time.Hour})
	jwt := newJWT(orgA, "u", time.Time{})
	done := make(chan error, 1)
	sent := make(chan struct{})
	go func() {
		done <- r.Delete(t.Context(), own(jwt), func(ctx context.Context) (atlas.JWT, error) {
			defer close(sent)
			return w.send(jwt)(ctx)
		})
	}()
	<-sent
	r.Close()
	if _, ok := errors.AsType[*UnsettledError](<-done); !ok {
		t.Error("acknowledged without Redis")
	}
	if err := r.Delete(t.Context(), own(jwt), w.send(jwt)); !errors.Is(err, errClosed) {
		t.Errorf("after Close: %v, want errClosed", err)
	}
}
