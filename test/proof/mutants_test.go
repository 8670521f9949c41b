package proof

import (
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/history"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// Broken designs of sharing and caching. TestProofRejects checks that the proof rejects them, so
// that its acceptance of the real design means something.

// fencedAfter moves its fence after a delete but not before it, so a caller may get the old token
// after another has got the new one.
type fencedAfter struct {
	*history.Unfenced

	moved map[string]int // guarded by mu; by org
	seq   int            // guarded by mu
}

func (m *fencedAfter) Create(ctx context.Context, cred atlas.Credential, fresh bool) (tokencache.Result, error) {
	m.Mu.Lock()
	found, seq := m.Tokens[m.Key(cred)], m.seq
	usable := found.Seq >= m.moved[cred.Claims().OrgID] && time.Now().Before(found.Until)
	m.Mu.Unlock()
	if usable && !fresh {
		return tokencache.Result{Token: found.Token}, nil
	}
	result, err := m.Ask(ctx, cred)
	if err == nil {
		m.Mu.Lock()
		defer m.Mu.Unlock()
		m.Tokens[m.Key(cred)] = history.Remembered{Token: result.Token, Seq: seq, Until: time.Now().Add(proofTTL)}
	}
	return result, err
}

func (m *fencedAfter) Delete(ctx context.Context, cred atlas.Credential) (string, error) {
	org, err := m.Send(ctx, cred)
	m.Mu.Lock()
	defer m.Mu.Unlock()
	m.seq++
	m.moved[cred.Claims().OrgID] = m.seq
	return org, err
}

// apart reads the value and the fence in Redis in separate round trips, between which a delete can
// begin and end.
type apart struct {
	history.Upstream

	client *redis.Client
}

func (m *apart) do(ctx context.Context, words ...any) string {
	<-time.After(time.Duration(mathrand.IntN(3)) * time.Millisecond) // variable latency
	value, _ := m.client.Do(ctx, words...).Text()
	return value
}

func (m *apart) Create(ctx context.Context, cred atlas.Credential, fresh bool) (tokencache.Result, error) {
	key := "token " + cred.Claims().OrgID
	if !fresh && m.do(ctx, "GET", "held "+cred.Claims().OrgID) == "" {
		if token := m.do(ctx, "GET", key); token != "" {
			return tokencache.Result{Token: atlas.Token(token)}, nil
		}
	}
	result, err := m.Ask(ctx, cred)
	if err == nil && m.do(ctx, "GET", "held "+cred.Claims().OrgID) == "" {
		m.do(ctx, "SET", key, string(result.Token), "PX", fmt.Sprint(proofTTL.Milliseconds()))
		m.do(ctx, "SADD", "of "+cred.Claims().OrgID, key)
	}
	return result, err
}

func (m *apart) Delete(ctx context.Context, cred atlas.Credential) (string, error) {
	m.do(ctx, "SET", "held "+cred.Claims().OrgID, rand.Text())
	forget := func() {
		for key := range strings.Lines(m.do(ctx, "EVAL", "return table.concat(redis.call('SMEMBERS', KEYS[1]), '\\n')", "1", "of "+cred.Claims().OrgID)) {
			m.do(ctx, "DEL", strings.TrimSpace(key))
		}
	}
	forget()
	org, err := m.Send(ctx, cred)
	forget()
	m.do(ctx, "DEL", "held "+cred.Claims().OrgID)
	return org, err
}

// mutant is a broken design, and the world in which it is rejected.
type mutant struct {
	name     string
	replicas int
	ttl      time.Duration // of the real cache, if only its setup is wrong
	make     func(t *testing.T) func(tokencache.Atlas) server.Tokens
	// impatient is the share of callers that give up. With redis, a server restarts from snapshots.
	impatient float64
	redis     bool
}

var mutants = []mutant{
	{name: "plain single flight", replicas: 1, make: func(*testing.T) func(tokencache.Atlas) server.Tokens {
		return func(a tokencache.Atlas) server.Tokens {
			return &history.SingleFlight{Upstream: history.Upstream{Atlas: a}, Key: history.ByOrg}
		}
	}},
	{name: "single flight with Forget", replicas: 1, make: func(*testing.T) func(tokencache.Atlas) server.Tokens {
		return func(a tokencache.Atlas) server.Tokens {
			return &history.SingleFlight{Upstream: history.Upstream{Atlas: a}, Key: history.ByOrg, Forget: true}
		}
	}},
	{name: "a cache without a fence", replicas: 1, make: func(*testing.T) func(tokencache.Atlas) server.Tokens {
		return func(a tokencache.Atlas) server.Tokens { return history.NewUnfenced(a, history.ByJWT) }
	}},
	{name: "a fence that moves only after the delete", replicas: 1, make: func(*testing.T) func(tokencache.Atlas) server.Tokens {
		return func(a tokencache.Atlas) server.Tokens {
			return &fencedAfter{Unfenced: history.NewUnfenced(a, history.ByJWT), moved: map[string]int{}}
		}
	}},
	{name: "two replicas with separate caches", replicas: 2, ttl: proofTTL},
	{name: "value and fence read separately from Redis", replicas: 2, make: func(t *testing.T) func(tokencache.Atlas) server.Tokens {
		client := redis.NewClient(&redis.Options{Addr: redistest.Start(t).Addr()})
		t.Cleanup(func() { _ = client.Close() })
		return func(a tokencache.Atlas) server.Tokens { return &apart{history.Upstream{Atlas: a}, client} }
	}},
	{name: "a delete sent after its caller has left", replicas: 1, impatient: .2, make: func(*testing.T) func(tokencache.Atlas) server.Tokens {
		return func(a tokencache.Atlas) server.Tokens { return &unsent{history.Upstream{Atlas: a}} }
	}},
	{name: "a value not bound to the Redis process", replicas: 2, redis: true},
}

// unsent delays a delete past its caller's deadline, and then sends it.
type unsent struct{ history.Upstream }

func (m *unsent) Create(ctx context.Context, cred atlas.Credential, _ bool) (tokencache.Result, error) {
	return m.Ask(ctx, cred)
}

func (m *unsent) Delete(ctx context.Context, cred atlas.Credential) (org string, err error) {
	if mathrand.IntN(4) > 0 {
		return m.Send(ctx, cred)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-time.After(lateSlack + 500*time.Millisecond)
		org, err = m.Send(context.WithoutCancel(ctx), cred)
	}()
	select {
	case <-done:
		return org, err
	case <-ctx.Done():
		return "", &tokencache.UnsettledError{Err: ctx.Err()}
	}
}

// unbound reads and writes value and fence in one step, but accepts a fence that Redis restored
// from a snapshot.
type unbound struct {
	history.Upstream

	client *redis.Client
}

func (m *unbound) Create(ctx context.Context, cred atlas.Credential, fresh bool) (tokencache.Result, error) {
	org := cred.Claims().OrgID
	answer, _ := m.client.Eval(ctx, `
local fence = redis.call('GET', KEYS[1])
if not fence then
  fence = ARGV[1]
  redis.call('SET', KEYS[1], fence)
end
return {fence, redis.call('GET', KEYS[2] .. fence) or ''}`, []string{"fence " + org, "token " + org}, rand.Text()).StringSlice()
	if len(answer) == 2 && answer[1] != "" && !fresh {
		return tokencache.Result{Token: atlas.Token(answer[1])}, nil
	}
	result, err := m.Ask(ctx, cred)
	if err == nil && len(answer) == 2 {
		m.client.Eval(ctx, `if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[2] .. ARGV[1], ARGV[2], 'EX', 10) end`,
			[]string{"fence " + org, "token " + org}, answer[0], string(result.Token))
	}
	return result, err
}

// Delete returns once it has moved the fence.
func (m *unbound) Delete(ctx context.Context, cred atlas.Credential) (string, error) {
	org, err := m.Send(ctx, cred)
	for ctx.Err() == nil {
		if m.client.Set(ctx, "fence "+cred.Claims().OrgID, rand.Text(), 0).Err() == nil {
			return org, err
		}
		<-time.After(10 * time.Millisecond)
	}
	return "", &tokencache.UnsettledError{Err: ctx.Err()}
}

// mutantTraffic is the traffic in a mutant's world.
var mutantTraffic = traffic{operations: 800, clients: 12, deletes: .06, fresh: .1}

// TestProofRejects checks that every broken design is rejected.
func TestProofRejects(t *testing.T) {
	if testutil.Slower > 1 {
		t.Skip("under the race detector calls are too slow for some designs to fail")
	}
	for _, mutant := range slices.Concat(testutil.Some(mutants, 1), testutil.Some(overlapMutants, 1)) {
		t.Run(mutant.name, func(t *testing.T) {
			testutil.ParallelWork(t)
			const most = 40
			operations := 0
			for range most {
				s := setup{replicas: mutant.replicas, orgs: 4, ttl: mutant.ttl}
				if mutant.make != nil {
					s.tokens = mutant.make(t)
				}
				l, stopTrouble := mutantTraffic, func() {}
				l.impatient = mutant.impatient
				if mutant.redis { // one org, for a few restarts
					s.orgs, l.operations, l.deletes = 1, 12_000, .01
					redisServer := redistest.Start(t)
					client := redis.NewClient(&redis.Options{Addr: redisServer.Addr()})
					s.tokens = func(a tokencache.Atlas) server.Tokens { return &unbound{history.Upstream{Atlas: a}, client} }
					stopTrouble = snapshots(&world{setup: setup{redis: redisServer}})
					t.Cleanup(func() { _ = client.Close() })
				}
				w := newWorld(t, s)
				stopFaults := w.injectFaults(slowAnswers...)
				h := w.run(t, l)
				stopFaults()
				stopTrouble()
				operations += len(h.Events)
				rejected, late := []int(nil), h.Late(lateSlack)
				if !mutant.redis { // while Redis is down, the lenient model applies
					rejected, _ = h.Illegal(false, 20*time.Second)
				}
				if violations := h.Violations(); violations > 0 || len(rejected) > 0 || late > 0 {
					t.Logf("rejected after %d operations: %d violations of acknowledged deletes, %d of %d orgs illegal, %d late deletes", operations, violations, len(rejected), s.orgs, late)
					return
				}
			}
			t.Errorf("not rejected in %d operations", operations)
		})
	}
}
