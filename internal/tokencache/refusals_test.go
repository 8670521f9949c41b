package tokencache

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// overlapping is a cache that knows a latency of 32 ms, with n calls of one credential in flight
// that do not use the cache.
func (d *testCache) overlapping(t *testing.T, jwt atlas.JWT, n int) (calls []steppedCall, ended []<-chan struct{}) {
	t.Helper()
	d.calls.latency = 32 * ms
	for i := range n {
		call := newSteppedCall()
		asked := false
		ended = append(ended, begin(func() { _, _ = d.Create(t.Context(), own(jwt), true, d.asked(&asked, call, jwt)) }))
		calls = append(calls, call)
		after(8 * ms)
		synctest.Wait()
		if !asked {
			t.Fatalf("call %d has not left", i+1)
		}
	}
	return calls, ended
}

func (d *testCache) asked(asked *bool, call steppedCall, jwt atlas.JWT) func(context.Context) (Answer, error) {
	return func(ctx context.Context) (Answer, error) {
		*asked = true
		return call.ask(d.world.ask(jwt))(ctx)
	}
}

// finish lets a call take effect and be answered.
func (s steppedCall) finish(ended <-chan struct{}) {
	close(s.effect)
	close(s.answer)
	<-ended
}

// TestOlderAnswerDoesNotReplaceNewer keeps the answer to the call that was sent later, in whatever
// order they arrive.
func TestOlderAnswerDoesNotReplaceNewer(t *testing.T) {
	for name, order := range map[string][]int{"in order": {0, 1}, "out of order": {1, 0}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{TTL: 10 * time.Second}, func(t *testing.T, d *testCache) {
				jwt := newJWT(orgA, "u", time.Time{})
				calls, ended := d.overlapping(t, jwt, 2)
				for _, i := range order {
					after(time.Second)
					calls[i].finish(ended[i])
				}
				result, err := d.create(jwt)
				if want := 2*time.Second + 8*ms; err != nil || !result.Status.Hit || result.Status.Age != want {
					t.Errorf("got a token that was asked for %v ago, %v; want that of %v ago", result.Status.Age, err, want)
				}
			})
		})
	}
}

// TestOverlappingAnswersThatDiffer caches neither of two different tokens, because it is not known
// which is newer.
func TestOverlappingAnswersThatDiffer(t *testing.T) {
	for name, order := range map[string][]int{"in order": {0, 1}, "out of order": {1, 0}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{TTL: time.Hour}, func(t *testing.T, d *testCache) {
				jwt := newJWT(orgA, "u", time.Time{})
				calls, ended := d.overlapping(t, jwt, 2)
				close(calls[0].effect)
				synctest.Wait()
				d.world.replace(orgA) // by another client
				close(calls[1].effect)
				for _, i := range order {
					close(calls[i].answer)
					<-ended[i]
				}
				if n := d.readable(); n != 0 {
					t.Errorf("%d tokens are kept", n)
				}
			})
		})
	}
}

// TestDeleteFencesCallsInFlight stores no answer to a call that was in flight during a delete.
func TestDeleteFencesCallsInFlight(t *testing.T) {
	bubble(t, Config{TTL: time.Hour}, func(t *testing.T, d *testCache) {
		jwt := newJWT(orgA, "u", time.Time{})
		d.accept(jwt)
		calls, ended := d.overlapping(t, jwt, maxInFlight)
		for _, c := range calls {
			close(c.effect)
		}
		synctest.Wait()
		d.delete(jwt)
		for i, c := range calls {
			close(c.answer)
			<-ended[i]
			if n := d.readable(); n != 0 {
				t.Errorf("after call %d: %d tokens are kept", i+1, n)
			}
		}
		d.want(jwt, miss)
		d.want(jwt, hit(3600))
	})
}

// TestRefusalKeepsOlderAnswersOut stores no answer to a call that was in flight when Atlas refused
// its credential. Answers to later calls are stored.
func TestRefusalKeepsOlderAnswersOut(t *testing.T) {
	for name, refuse := range map[string]func(*testing.T, *testCache, atlas.JWT, steppedCall, <-chan struct{}){
		"create": func(_ *testing.T, d *testCache, _ atlas.JWT, last steppedCall, ended <-chan struct{}) {
			d.world.failing(statusError(atlas.OpCreate, 401))
			last.finish(ended)
			d.world.failing(nil)
		},
		"delete": func(t *testing.T, d *testCache, jwt atlas.JWT, last steppedCall, ended <-chan struct{}) {
			refusal := statusError(atlas.OpDelete, 403)
			if err := d.Delete(t.Context(), own(jwt), func(context.Context) (atlas.JWT, error) { return jwt, refusal }); !errors.Is(err, refusal) {
				t.Errorf("got %v, want the refusal", err)
			}
			last.finish(ended)
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{TTL: time.Hour, StaleIfError: time.Hour}, func(t *testing.T, d *testCache) {
				jwt := newJWT(orgA, "u", time.Time{})
				calls, ended := d.overlapping(t, jwt, 3)
				for _, c := range calls[:2] {
					close(c.effect) // accepted
				}
				synctest.Wait()
				refuse(t, d, jwt, calls[2], ended[2])
				for i, c := range calls[:2] {
					close(c.answer)
					<-ended[i]
					if n := d.readable(); n != 0 {
						t.Errorf("after call %d: %d tokens are kept", i+1, n)
					}
				}
				d.want(jwt, miss)
				d.want(jwt, hit(3600))
				if n := len(d.caching.refusals.rounds); n != 0 {
					t.Errorf("%d credentials are kept", n)
				}
			})
		})
	}
}

// TestRefusalWaitsForStore removes a token that is being stored when its credential is refused.
func TestRefusalWaitsForStore(t *testing.T) {
	s := newRefusals()
	one, two := s.begin(key{1}), s.begin(key{1})
	one.storing.RLock()
	two.storing.RLock()    // storing does not wait for storing
	s.end(s.begin(key{1})) // nor does beginning
	refused := make(chan struct{})
	go func() {
		defer close(refused)
		s.refuse(key{1})
	}()
	for deadline := time.Now().Add(10 * time.Second); one.storing.TryRLock(); <-time.After(ms) { // no writer waits
		one.storing.RUnlock()
		if isClosed(refused) || time.Now().After(deadline) {
			t.Fatal("a refusal does not wait")
		}
	}
	if one.refused || two.refused {
		t.Error("refused while an answer is stored")
	}
	one.storing.RUnlock()
	two.storing.RUnlock()
	<-refused
	three := s.begin(key{1})
	if !one.refused || !two.refused || three.refused {
		t.Errorf("refused: %t, %t and %t; want the first two", one.refused, two.refused, three.refused)
	}
	for _, r := range []*round{one, two, three} {
		s.end(r)
	}
	if s.refuse(key{1}); len(s.rounds) != 0 {
		t.Errorf("%d credentials are kept", len(s.rounds))
	}
}
