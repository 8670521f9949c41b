package tokencache

import (
	"context"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
)

// instantAtlas answers at once.
type instantAtlas struct{}

func (instantAtlas) CreateEphemeralToken(context.Context, atlas.JWT) (atlas.Token, error) {
	return "token", nil
}
func (instantAtlas) DeleteEphemeralToken(context.Context, atlas.JWT) error { return nil }

func newBench(b *testing.B, cfg Config) *Cache {
	b.Helper()
	b.ReportAllocs()
	return newInstant(b, cfg)
}

func newInstant(tb testing.TB, cfg Config) *Cache {
	tb.Helper()
	c, err := New(instantAtlas{}, cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	return c
}

func BenchmarkHitInMemory(b *testing.B) {
	c, jwt := newBench(b, Config{TTL: time.Hour}), newJWT(orgA, "u", time.Time{})
	for b.Loop() {
		if _, err := c.Create(b.Context(), own(jwt), false); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkParallelHitsInMemory measures hits of several credentials at a time.
func BenchmarkParallelHitsInMemory(b *testing.B) {
	c := newBench(b, Config{TTL: time.Hour})
	var n atomic.Int64
	b.SetParallelism(50)
	b.RunParallel(func(pb *testing.PB) {
		jwt := newJWT(orgA, strconv.FormatInt(n.Add(1), 10), time.Time{})
		for pb.Next() {
			if _, err := c.Create(b.Context(), own(jwt), false); err != nil {
				b.Error(err)
			}
		}
	})
}

func BenchmarkMissUnshared(b *testing.B) {
	c, jwt := newBench(b, Config{}), newJWT(orgA, "u", time.Time{})
	for b.Loop() {
		if _, err := c.Create(b.Context(), own(jwt), false); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParallelCallersOfOneKey(b *testing.B) {
	c, jwt := newBench(b, Config{}), newJWT(orgA, "u", time.Time{})
	b.SetParallelism(50) // times GOMAXPROCS; about 100 on two cores
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := c.Create(b.Context(), own(jwt), false); err != nil {
				b.Error(err)
			}
		}
	})
}

// newRedisBench returns a cache over a Redis that has a token for jwt.
func newRedisBench(b *testing.B, jwt atlas.JWT) *Cache {
	b.Helper()
	c := newBench(b, Config{TTL: time.Hour, Redis: &RedisConfig{URL: redistest.Start(b).URL(), Budget: time.Second}})
	for deadline := time.Now().Add(10 * time.Second); ; {
		if result, err := c.Create(b.Context(), own(jwt), false); err != nil || time.Now().After(deadline) {
			b.Fatalf("nothing is cached: %v", err)
		} else if result.Status.Hit {
			return c
		}
	}
}

// reportCPU reports the CPU time of this process, without Redis, per operation.
func reportCPU(b *testing.B) (done func()) {
	b.Helper()
	used := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	start := used()
	return func() { b.ReportMetric(float64((used()-start).Nanoseconds())/1000/float64(b.N), "cpu-µs/look") }
}

func BenchmarkHitInRedis(b *testing.B) {
	jwt := newJWT(orgA, "u", time.Time{})
	c := newRedisBench(b, jwt)
	defer reportCPU(b)()
	for b.Loop() {
		if _, err := c.Create(b.Context(), own(jwt), false); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkParallelHitsInRedis measures a hit while a hundred others read, each its own credential.
func BenchmarkParallelHitsInRedis(b *testing.B) {
	c := newRedisBench(b, newJWT(orgA, "u", time.Time{}))
	var n, hits atomic.Int64
	b.SetParallelism(50)
	defer reportCPU(b)()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		jwt := newJWT(orgA, strconv.FormatInt(n.Add(1), 10), time.Time{})
		for pb.Next() {
			result, err := c.Create(b.Context(), own(jwt), false)
			if err != nil {
				b.Error(err)
			}
			if result.Status.Hit {
				hits.Add(1)
			}
		}
	})
	b.ReportMetric(float64(hits.Load())/float64(b.N), "hits/look")
	b.ReportMetric(float64(b.Elapsed().Microseconds())*100/float64(b.N), "µs/look")
}
