package tokencache

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// shop is a state machine over a Cache in memory: calls begin, take effect at Atlas and are answered at any time, and
// time passes. The model knows one thing: when which org's token was deleted, and when that was acknowledged.
type shop struct {
	cache *Cache
	world *world
	calls []*order

	acknowledged map[string]int // by org, how many deletes had taken effect when one was last acknowledged
}

// order is a call in progress.
type order struct {
	slowly
	took, answered bool
	done           <-chan struct{}
}

const shopTTL, shopStale, shopSettle = 10 * time.Second, 20 * time.Second, 5 * time.Second

func (s *shop) jwt(t *rapid.T) atlas.JWT {
	return newJWT(rapid.SampledFrom([]string{orgA, orgA, orgB}).Draw(t, "org"), rapid.SampledFrom([]string{"u", "v"}).Draw(t, "user"), time.Time{})
}

// generation is which token of its org one is.
func generation(token atlas.Token) (n int, org string) {
	if _, err := fmt.Sscanf(string(token), "token %d of %s", &n, &org); err != nil {
		return -1, ""
	}
	return n, org
}

func (s *shop) create(t *rapid.T) { s.beginCreate(t) }

func (s *shop) wholeCreate(t *rapid.T) { s.beginCreate(t).finish() }

func (s *shop) beginCreate(t *rapid.T) *order {
	jwt, fresh := s.jwt(t), rapid.Bool().Draw(t, "fresh")
	org := jwt.UnverifiedClaims().OrgID
	atLeast := s.acknowledged[org]
	o := &order{slowly: newSlowly()}
	o.done = begin(func() {
		result, err := s.cache.Create(context.Background(), CallersJWT(jwt), fresh, o.ask(s.world.ask(jwt)))
		if err != nil {
			return // Atlas failed, and it was not hidden
		}
		n, of := generation(result.Token)
		switch {
		case of != org:
			t.Errorf("given another org's token")
		case n < atLeast:
			t.Errorf("given token %d of its org after the delete that made %d was acknowledged: %s", n, atLeast, result.Status)
		case result.Status.Hit && fresh:
			t.Errorf("no-cache was answered from memory")
		case result.Status.Hit && !result.Status.Stale && result.Status.Age >= shopTTL:
			t.Errorf("a hit of age %v", result.Status.Age)
		case result.Status.Age >= shopTTL+shopStale:
			t.Errorf("a stale token of age %v", result.Status.Age)
		}
	})
	s.calls = append(s.calls, o)
	return o
}

func (s *shop) delete(t *rapid.T) { s.beginDelete(t) }

func (s *shop) wholeDelete(t *rapid.T) { s.beginDelete(t).finish() }

func (s *shop) beginDelete(t *rapid.T) *order {
	jwt := s.jwt(t)
	org := jwt.UnverifiedClaims().OrgID
	outcome := rapid.SampledFrom([]error{
		nil, nil, statusError(atlas.OpDelete, 504), statusError(atlas.OpDelete, 404),
	}).Draw(t, "outcome")
	o := &order{slowly: newSlowly()}
	made := 0
	o.done = begin(func() {
		err := s.cache.Delete(context.Background(), CallersJWT(jwt), o.send(func(ctx context.Context) (atlas.JWT, error) {
			if outcome == nil || !isStatus(outcome, 404) {
				_, _ = s.world.send(jwt)(ctx)
			}
			made, _ = generation(s.world.token(org))
			return jwt, outcome
		}))
		if err == nil {
			s.acknowledged[org] = max(s.acknowledged[org], made)
		}
	})
	s.calls = append(s.calls, o)
	return o
}

func isStatus(err error, code int) bool {
	e, ok := err.(*atlas.Error) //nolint:errorlint // the test's own, not wrapped
	return ok && e.StatusCode == code
}

// open returns a call in progress.
func (s *shop) open(t *rapid.T) *order {
	var open []*order
	for _, o := range s.calls {
		select {
		case <-o.done:
		default:
			if !o.answered {
				open = append(open, o)
			}
		}
	}
	if len(open) == 0 {
		t.Skip("nothing is in progress")
	}
	return rapid.SampledFrom(open).Draw(t, "call")
}

// takeEffect lets a call take effect at Atlas, and answer lets it be answered too.
func (s *shop) takeEffect(t *rapid.T) { s.open(t).take() }

func (s *shop) answer(t *rapid.T) { s.open(t).finish() }

func (o *order) take() {
	if !o.took {
		o.took = true
		close(o.effect)
	}
	synctest.Wait()
}

func (o *order) finish() {
	o.take()
	if !o.answered {
		o.answered = true
		close(o.answer)
	}
	synctest.Wait()
}

func (s *shop) outage(t *rapid.T) {
	s.world.failing(rapid.SampledFrom([]error{
		nil, nil, statusError(atlas.OpCreate, 503), statusError(atlas.OpCreate, 401),
	}).Draw(t, "Atlas"))
}

func (s *shop) wait(t *rapid.T) {
	after(time.Duration(rapid.IntRange(1, 12).Draw(t, "seconds")) * time.Second)
	synctest.Wait()
}

func (s *shop) check(t *rapid.T) {
	m := s.cache.store.(*memory)
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for _, r := range m.tokens {
		switch {
		case !now.Before(r.until):
			t.Fatal("an expired token is kept")
		case m.all.deletes > 0 || r.fence.held(now): // all may be held for another org, whose fence gave way
			t.Fatal("a token is behind a fence that is held")
		case m.tokens[r.key] != r || r.fence.tokens[r.key] != r || m.orgs[r.fence.name] != r.fence:
			t.Fatal("the maps disagree")
		}
	}
	if len(m.tokens) > m.maxTokens || m.idle.Len() > m.maxTokens {
		t.Fatalf("%d tokens and %d idle fences", len(m.tokens), m.idle.Len())
	}
}

func TestMemoryProperties(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(bubbled{t}, func(t *rapid.T) {
			cache, err := New(Config{
				TTL: shopTTL, StaleIfError: shopStale, SettleTime: shopSettle, CallTimeout: time.Hour,
				MaxTokens: rapid.IntRange(1, 4).Draw(t, "tokens"),
			})
			if err != nil {
				t.Fatal(err)
			}
			s := &shop{cache: cache, world: newWorld(), acknowledged: map[string]int{}}
			defer cache.Close()
			defer func() {
				for _, o := range s.calls {
					o.finish()
				}
			}()
			t.Repeat(map[string]func(*rapid.T){
				"create": s.create, "whole create": s.wholeCreate, "delete": s.delete, "whole delete": s.wholeDelete, "take effect": s.takeEffect,
				"answer": s.answer, "outage": s.outage, "wait": s.wait, "": s.check,
			})
		})
	})
}
