package tokencache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
)

// TestLooksTogether: of those who look at the same time each gets what is its own, also from a Redis that has forgotten the script.
func TestLooksTogether(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{}).connected()
	orgs := make([]string, 2*mostLooks)
	jwts := make([]atlas.JWT, len(orgs))
	for i := range orgs {
		orgs[i] = fmt.Sprintf("org %d", i)
		jwts[i] = newJWT(orgs[i], "u", time.Time{})
	}
	for _, prepare := range []func(){
		func() {
			for _, jwt := range jwts {
				r.wantMiss(jwt)
			}
		},
		func() { server.Command("SCRIPT", "FLUSH") },
	} {
		prepare()
		var all sync.WaitGroup
		for i, jwt := range jwts {
			all.Go(func() {
				result, err := r.create(jwt)
				if err != nil || !result.Status.Hit || result.Token != w.token(orgs[i]) || result.Org != orgs[i] {
					t.Errorf("%s: %+v, %v", orgs[i], result, err)
				}
			})
		}
		all.Wait()
	}
}

// TestLooksOfThoseWhoLeave: whoever leaves is let go, and Redis is not blamed for it.
func TestLooksOfThoseWhoLeave(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{}).connected()
	failed := func() float64 { return r.counted("tokend_cache_redis_operations_total", "look", "failed") }
	before := failed() // it may not have been connected at first
	server.Pause()
	t.Cleanup(server.Resume)
	for i := range 2 * restAfter {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(10*time.Millisecond, cancel)
		start, jwt := time.Now(), newJWT(orgA, fmt.Sprint(i), time.Time{})
		if _, err := r.Create(ctx, own(jwt), false, w.ask(jwt)); !errors.Is(err, context.Canceled) || time.Since(start) > 500*time.Millisecond {
			t.Errorf("%v after %v, want Canceled after 10ms", err, time.Since(start))
		}
		cancel()
	}
	if more := failed() - before; r.Check() != nil || more > 0 {
		t.Errorf("Redis is said to fail: %v, and %v times", r.Check(), more)
	}
}

// TestLooksSurviveAPanic: one in the client library costs those who look then a look, and nobody else anything.
func TestLooksSurviveAPanic(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{}).connected()
	looks := r.caching.store.(*redisStore).client.looks
	for range 2 * lookers {
		if _, err := looks.run(t.Context(), nil, []any{panics{}}); !errors.Is(err, errMalformed) {
			t.Fatalf("got %v, want errMalformed", err)
		}
	}
	jwt := newJWT(orgA, "u", time.Time{})
	r.wantMiss(jwt)
	r.wantHit(jwt)
}

// panics is an argument that cannot be sent.
type panics struct{}

func (panics) MarshalBinary() ([]byte, error) { panic("it") }
