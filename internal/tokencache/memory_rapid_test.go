package tokencache

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// cacheMachine is a state machine over a Cache in memory: calls begin, take effect at Atlas and are
// answered at any time, and time passes. The model knows one thing: when which org's token was
// deleted, and when that was acknowledged.
type cacheMachine struct {
	cache *testCache
	calls []*callInProgress

	mu           sync.Mutex              // several callers are answered at once
	acknowledged map[string]int          // guarded by mu; by org, how many deletes had taken effect when one was last acknowledged
	refused      map[atlas.JWT]time.Time // guarded by mu; when it last was
	asked        map[atlas.JWT]time.Time // guarded by mu; when the youngest answer that was read was asked for
}

// callInProgress is a call that has not been answered.
type callInProgress struct {
	steppedCall
	took, answered bool
	done           <-chan struct{}
}

const machineTTL, machineStale, machineSettle = 10 * time.Second, 20 * time.Second, 5 * time.Second

func (s *cacheMachine) jwt(t *rapid.T) atlas.JWT {
	return newJWT(rapid.SampledFrom([]string{orgA, orgA, orgB}).Draw(t, "org"), rapid.SampledFrom([]string{"u", "v"}).Draw(t, "user"), time.Time{})
}

// tokenNumber returns the number of a token within its org.
func tokenNumber(token atlas.Token) (n int, org string) {
	if _, err := fmt.Sscanf(string(token), "token %d of %s", &n, &org); err != nil {
		return -1, ""
	}
	return n, org
}

func (s *cacheMachine) create(t *rapid.T) { s.beginCreate(t) }

func (s *cacheMachine) wholeCreate(t *rapid.T) { s.beginCreate(t).finish() }

func (s *cacheMachine) beginCreate(t *rapid.T) *callInProgress {
	jwt, fresh := s.jwt(t), rapid.Bool().Draw(t, "fresh")
	org := jwt.UnverifiedClaims().OrgID
	s.mu.Lock()
	atLeast, refused := s.acknowledged[org], s.refused[jwt]
	s.mu.Unlock()
	o := &callInProgress{steppedCall: newSteppedCall()}
	o.done = begin(func() {
		result, err := s.cache.Create(context.Background(), own(jwt), fresh, o.ask(s.cache.world.ask(jwt)))
		s.mu.Lock()
		defer s.mu.Unlock()
		if err != nil {
			s.noteRefusal(jwt, err)
			return // Atlas failed, and it was not hidden
		}
		asked := time.Now().Add(-result.Status.Age)
		n, of := tokenNumber(result.Token)
		switch {
		case of != org:
			t.Errorf("got another org's token")
		case n < atLeast:
			t.Errorf("got token %d of its org after the delete that made %d was acknowledged: %s", n, atLeast, result.Status)
		case result.Status.Hit && asked.Before(refused):
			t.Errorf("got what was requested %v before the credential was refused: %s", refused.Sub(asked), result.Status)
		case result.Status.Hit && s.cache.memory.maxTokens >= 4 && asked.Before(s.asked[jwt]): // none gives way to others
			t.Errorf("got an answer that is %v older than the last one: %s", s.asked[jwt].Sub(asked), result.Status)
		case result.Status.Hit && fresh:
			t.Errorf("no-cache was answered from memory")
		case result.Status.Hit && !result.Status.Stale && result.Status.Age >= machineTTL:
			t.Errorf("a hit of age %v", result.Status.Age)
		case result.Status.Age >= machineTTL+machineStale:
			t.Errorf("a stale token of age %v", result.Status.Age)
		}
		if result.Status.Hit {
			s.asked[jwt] = asked
		}
	})
	s.calls = append(s.calls, o)
	return o
}

// noteRefusal records whether Atlas refused a call. The caller holds mu.
func (s *cacheMachine) noteRefusal(jwt atlas.JWT, err error) {
	if isRefusal(err) {
		s.refused[jwt] = time.Now()
	}
}

func (s *cacheMachine) delete(t *rapid.T) { s.beginDelete(t) }

func (s *cacheMachine) wholeDelete(t *rapid.T) { s.beginDelete(t).finish() }

func (s *cacheMachine) beginDelete(t *rapid.T) *callInProgress {
	jwt := s.jwt(t)
	org := jwt.UnverifiedClaims().OrgID
	outcome := rapid.SampledFrom([]error{
		nil, nil, statusError(atlas.OpDelete, 504), statusError(atlas.OpDelete, 404), statusError(atlas.OpDelete, 401),
	}).Draw(t, "outcome")
	o := &callInProgress{steppedCall: newSteppedCall()}
	made := 0
	o.done = begin(func() {
		err := s.cache.Delete(context.Background(), own(jwt), o.send(func(ctx context.Context) (atlas.JWT, error) {
			if !isStatus(outcome, 404) && !isStatus(outcome, 401) {
				_, _ = s.cache.world.send(jwt)(ctx)
			}
			made, _ = tokenNumber(s.cache.world.token(org))
			return jwt, outcome
		}))
		s.mu.Lock()
		defer s.mu.Unlock()
		if err == nil {
			s.acknowledged[org] = max(s.acknowledged[org], made)
		}
		s.noteRefusal(jwt, err)
	})
	s.calls = append(s.calls, o)
	return o
}

func isStatus(err error, code int) bool {
	e, ok := err.(*atlas.Error) //nolint:errorlint // the test's own, not wrapped
	return ok && e.StatusCode == code
}

// open returns a call in progress.
func (s *cacheMachine) open(t *rapid.T) *callInProgress {
	var open []*callInProgress
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
func (s *cacheMachine) takeEffect(t *rapid.T) { s.open(t).take() }

func (s *cacheMachine) answer(t *rapid.T) { s.open(t).finish() }

func (o *callInProgress) take() {
	if !o.took {
		o.took = true
		close(o.effect)
	}
	synctest.Wait()
}

func (o *callInProgress) finish() {
	o.take()
	if !o.answered {
		o.answered = true
		close(o.answer)
	}
	synctest.Wait()
}

func (s *cacheMachine) outage(t *rapid.T) {
	s.cache.world.failing(rapid.SampledFrom([]error{
		nil, nil, statusError(atlas.OpCreate, 503), statusError(atlas.OpCreate, 401),
	}).Draw(t, "Atlas"))
}

func (s *cacheMachine) wait(t *rapid.T) {
	after(time.Duration(rapid.IntRange(1, 12).Draw(t, "seconds")) * time.Second)
	synctest.Wait()
}

func (s *cacheMachine) check(t *rapid.T) {
	m := s.cache.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	now, count := time.Now(), map[*fence]int{}
	for k, r := range m.tokens {
		count[r.fence]++
		found := m.find(k, now)
		switch {
		case m.fences[r.fence.org] != r.fence:
			t.Fatal("a token is behind a fence that is not its org's")
		case found.Status.Hit && r.fence.holds > 0:
			t.Fatal("a token is read while a delete is in progress")
		case found.Status.Hit && elapsed(r.since, now) >= r.life:
			t.Fatal("a token is read that has expired")
		case found.Status.Hit && r.token != r.fence.token:
			t.Fatal("a token is read that is not the last one that Atlas answered")
		}
	}
	for org, f := range m.fences {
		if f.uses < count[f]+f.holds || f.holds < 0 {
			t.Fatalf("%s: %d uses, %d tokens, %d holds", org, f.uses, count[f], f.holds)
		}
	}
	if len(m.tokens) > m.maxTokens || len(m.tokens) != m.oldest.Len() {
		t.Fatalf("%d tokens, %d in order", len(m.tokens), m.oldest.Len())
	}
}

func TestMemoryProperties(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(withoutDeadline{t}, func(t *rapid.T) {
			world := newFakeAtlas()
			c, err := New(world, Config{
				TTL: machineTTL, StaleIfError: machineStale, SettleTime: machineSettle, CallTimeout: time.Hour,
			})
			if err != nil {
				t.Fatal(err)
			}
			cache := &testCache{c, nil, world}
			cache.memory.maxTokens = rapid.IntRange(1, 4).Draw(t, "tokens")
			cache.calls.latency = time.Second // which they know by the time that there is something to share
			s := &cacheMachine{cache: cache, acknowledged: map[string]int{}, refused: map[atlas.JWT]time.Time{}, asked: map[atlas.JWT]time.Time{}}
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
