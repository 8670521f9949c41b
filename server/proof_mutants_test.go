package server_test

import (
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/singleflight"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// Common ways to share and remember, each wrong in its own way. TestProofRejects shows that the proof would find them out,
// so that its silence about the real one means something.

// upstream is what every mutant does when it has nothing, and when it deletes.
type upstream struct{ atlas tokencache.Atlas }

func (u upstream) ask(ctx context.Context, cred atlas.Credential) (tokencache.Result, error) {
	token, err := atlas.WithReLogin(ctx, cred, u.atlas.CreateEphemeralToken)
	return tokencache.Result{Token: token, Org: cred.Claims().OrgID}, err
}

func (u upstream) send(ctx context.Context, cred atlas.Credential) (string, error) {
	return cred.Claims().OrgID, u.atlas.DeleteEphemeralToken(ctx, cred.JWT)
}

func (upstream) Check() error { return nil }

// singleFlight joins a call that has already begun.
type singleFlight struct {
	upstream

	group  singleflight.Group
	key    func(atlas.Credential) string
	forget bool // a delete makes the callers after it begin a new one
}

func byOrg(cred atlas.Credential) string { return cred.Claims().OrgID }

func (m *singleFlight) Create(ctx context.Context, cred atlas.Credential, _ bool) (tokencache.Result, error) {
	result, err, _ := m.group.Do(m.key(cred), func() (any, error) { return m.ask(context.WithoutCancel(ctx), cred) })
	return result.(tokencache.Result), err
}

func (m *singleFlight) Delete(ctx context.Context, cred atlas.Credential) (string, error) {
	if m.forget {
		m.group.Forget(m.key(cred))
	}
	org, err := m.send(ctx, cred)
	return org, err
}

// unfenced remembers by time alone. A delete forgets what is there, but not what is on its way.
type unfenced struct {
	upstream

	key func(atlas.Credential) string

	mu     sync.Mutex
	tokens map[string]remembered // guarded by mu
}

func byJWT(cred atlas.Credential) string { return string(cred.JWT) }

type remembered struct {
	token atlas.Token
	seq   int
	until time.Time
}

func (m *unfenced) Create(ctx context.Context, cred atlas.Credential, fresh bool) (tokencache.Result, error) {
	m.mu.Lock()
	found := m.tokens[m.key(cred)]
	m.mu.Unlock()
	if !fresh && time.Now().Before(found.until) {
		return tokencache.Result{Token: found.token}, nil
	}
	result, err := m.ask(ctx, cred)
	if err == nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.tokens[m.key(cred)] = remembered{token: result.Token, until: time.Now().Add(proofTTL)}
	}
	return result, err
}

func (m *unfenced) Delete(ctx context.Context, cred atlas.Credential) (string, error) {
	org, err := m.send(ctx, cred)
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.tokens)
	return org, err
}

// fencedAfter has a fence that moves when a delete has ended, and not before it begins: until then one caller is given the
// old token after another has the new one.
type fencedAfter struct {
	*unfenced

	moved map[string]int // guarded by mu; by org
	seq   int            // guarded by mu
}

func (m *fencedAfter) Create(ctx context.Context, cred atlas.Credential, fresh bool) (tokencache.Result, error) {
	m.mu.Lock()
	found, seq := m.tokens[m.key(cred)], m.seq
	usable := found.seq >= m.moved[cred.Claims().OrgID] && time.Now().Before(found.until)
	m.mu.Unlock()
	if usable && !fresh {
		return tokencache.Result{Token: found.token}, nil
	}
	result, err := m.ask(ctx, cred)
	if err == nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.tokens[m.key(cred)] = remembered{result.Token, seq, time.Now().Add(proofTTL)}
	}
	return result, err
}

func (m *fencedAfter) Delete(ctx context.Context, cred atlas.Credential) (string, error) {
	org, err := m.send(ctx, cred)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seq++
	m.moved[cred.Claims().OrgID] = m.seq
	return org, err
}

// apart keeps tokens in Redis, and looks at the fence in a round trip of its own: between the two, and before what was asked
// for is stored, a delete can begin and end.
type apart struct {
	upstream

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
	result, err := m.ask(ctx, cred)
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
	org, err := m.send(ctx, cred)
	forget()
	m.do(ctx, "DEL", "held "+cred.Claims().OrgID)
	return org, err
}

func newUnfenced(a tokencache.Atlas, key func(atlas.Credential) string) *unfenced {
	return &unfenced{upstream: upstream{a}, key: key, tokens: map[string]remembered{}}
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
		return func(a tokencache.Atlas) server.Tokens { return &singleFlight{upstream: upstream{a}, key: byOrg} }
	}},
	{"single flight with Forget", 1, 0, func(*testing.T) func(tokencache.Atlas) server.Tokens {
		return func(a tokencache.Atlas) server.Tokens {
			return &singleFlight{upstream: upstream{a}, key: byOrg, forget: true}
		}
	}},
	{"a memory without a fence", 1, 0, func(*testing.T) func(tokencache.Atlas) server.Tokens {
		return func(a tokencache.Atlas) server.Tokens { return newUnfenced(a, byJWT) }
	}},
	{"a fence that moves only after the delete", 1, 0, func(*testing.T) func(tokencache.Atlas) server.Tokens {
		return func(a tokencache.Atlas) server.Tokens {
			return &fencedAfter{unfenced: newUnfenced(a, byJWT), moved: map[string]int{}}
		}
	}},
	{"a memory of its own on each of two replicas", 2, proofTTL, nil},
	{"a value in Redis read apart from its fence", 2, 0, func(t *testing.T) func(tokencache.Atlas) server.Tokens {
		client := redis.NewClient(&redis.Options{Addr: redistest.Start(t).Addr()})
		t.Cleanup(func() { _ = client.Close() })
		return func(a tokencache.Atlas) server.Tokens { return &apart{upstream{a}, client} }
	}},
}

// mutantTraffic is what callers do in its world.
var mutantTraffic = traffic{operations: 800, clients: 12, deletes: .06, fresh: .1}

// TestProofRejects: each of the broken designs is found out, where the real one is not.
func TestProofRejects(t *testing.T) {
	if testutil.Slower > 1 {
		t.Skip("under the race detector calls are so slow that some designs go wrong too rarely to be found out")
	}
	for _, mutant := range slices.Concat(mutants, overlapMutants) {
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
				operations += len(h.events)
				rejected, _ := h.illegal(false, 20*time.Second)
				if violations := h.violations(); violations > 0 || len(rejected) > 0 {
					t.Logf("rejected after %d operations: %d violations of acknowledged deletes, %d of %d orgs illegal", operations, violations, len(rejected), s.orgs)
					return
				}
			}
			t.Errorf("not rejected in %d operations", operations)
		})
	}
}
