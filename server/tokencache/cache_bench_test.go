package tokencache

import (
	"context"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/server/tokencache/redistest"
)

// instantAtlas answers at once.
type instantAtlas struct{}

func (instantAtlas) CreateEphemeralToken(context.Context, atlas.JWT) (atlas.Token, error) {
	return "token", nil
}
func (instantAtlas) DeleteEphemeralToken(context.Context, atlas.JWT) error { return nil }

func newBench(b *testing.B, cfg Config) *Cache {
	b.Helper()
	c, err := New(instantAtlas{}, cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	b.ReportAllocs()
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

// How long a hit takes while a hundred others look as well, each for its own.
func BenchmarkParallelHitsInRedis(b *testing.B) {
	c := newBench(b, Config{TTL: time.Hour, Redis: &RedisConfig{URL: redistest.Start(b).URL()}})
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
	b.ReportMetric(float64(b.Elapsed().Microseconds())*100/float64(b.N), "µs/look")
}
