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

// Common ways to share and remember, each wrong in its own way. TestProofRejects shows that the proof would find them out,
// so that its silence about the real one means something.

// fencedAfter has a fence that moves when a delete has ended, and not before it begins: until then one caller is given the
// old token after another has the new one.
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

// apart keeps tokens in Redis, and looks at the fence in a round trip of its own: between the two, and before what was asked
// for is stored, a delete can begin and end.
type apart struct {
	history.Upstream

	client *redis.Client
}

func (m *apart) do(ctx context.Context, words ...any) string {
	<-time.After(time.Duration(mathrand.IntN(3)) * time.Millisecond) // a network that is not always as fast
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

// mutant is one of them, and the world in which it is found out.
type mutant struct {
	name     string
	replicas int
	ttl      time.Duration // of the real cache, where only its set-up is wrong
	make     func(t *testing.T) func(tokencache.Atlas) server.Tokens
}

var mutants = []mutant{
	{"plain single flight", 1, 0, func(*testing.T) func(tokencache.Atlas) server.Tokens {
		return func(a tokencache.Atlas) server.Tokens {
			return &history.SingleFlight{Upstream: history.Upstream{Atlas: a}, Key: history.ByOrg}
		}
	}},
	{"single flight with Forget", 1, 0, func(*testing.T) func(tokencache.Atlas) server.Tokens {
		return func(a tokencache.Atlas) server.Tokens {
			return &history.SingleFlight{Upstream: history.Upstream{Atlas: a}, Key: history.ByOrg, Forget: true}
		}
	}},
	{"a memory without a fence", 1, 0, func(*testing.T) func(tokencache.Atlas) server.Tokens {
		return func(a tokencache.Atlas) server.Tokens { return history.NewUnfenced(a, history.ByJWT) }
	}},
	{"a fence that moves only after the delete", 1, 0, func(*testing.T) func(tokencache.Atlas) server.Tokens {
		return func(a tokencache.Atlas) server.Tokens {
			return &fencedAfter{Unfenced: history.NewUnfenced(a, history.ByJWT), moved: map[string]int{}}
		}
	}},
	{"a memory of its own on each of two replicas", 2, proofTTL, nil},
	{"a value in Redis read apart from its fence", 2, 0, func(t *testing.T) func(tokencache.Atlas) server.Tokens {
		client := redis.NewClient(&redis.Options{Addr: redistest.Start(t).Addr()})
		t.Cleanup(func() { _ = client.Close() })
		return func(a tokencache.Atlas) server.Tokens { return &apart{history.Upstream{Atlas: a}, client} }
	}},
}

// mutantTraffic is what callers do in its world.
var mutantTraffic = traffic{operations: 800, clients: 12, deletes: .06, fresh: .1}

// TestProofRejects: each of the broken designs is found out, where the real one is not.
func TestProofRejects(t *testing.T) {
	if testutil.Slower > 1 {
		t.Skip("under the race detector calls are so slow that some designs go wrong too rarely to be found out")
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
				w := newWorld(t, s)
				stopFaults := w.injectFaults(slowAnswers...)
				h := w.run(t, mutantTraffic)
				stopFaults()
				operations += len(h.Events)
				rejected, _ := h.Illegal(false, 20*time.Second)
				if violations := h.Violations(); violations > 0 || len(rejected) > 0 {
					t.Logf("rejected after %d operations: %d violations of acknowledged deletes, %d of %d orgs illegal", operations, violations, len(rejected), s.orgs)
					return
				}
			}
			t.Errorf("not rejected in %d operations", operations)
		})
	}
}
