package server_test

import (
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"golang.org/x/sync/singleflight"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/server"
	"github.com/ForstaLabs/ephemeral-token-service/server/tokencache"
	"github.com/ForstaLabs/ephemeral-token-service/server/tokencache/redistest"
)

// Common ways to share and remember, each wrong in its own way. TestProofRejects shows that the proof would find them out,
// so that its silence about the real one means something.

type (
	asker  = func(context.Context) (tokencache.Answer, error)
	sender = func(context.Context) (atlas.JWT, error)
)

// asked is what every mutant does when it has nothing.
func asked(ctx context.Context, ask asker) (tokencache.Result, error) {
	answer, err := ask(ctx)
	return tokencache.Result{Token: answer.Token}, err
}

// singleFlight joins a call that has already begun.
type singleFlight struct {
	group  singleflight.Group
	forget bool // a delete makes the callers after it begin a new one
}

func (m *singleFlight) Create(ctx context.Context, cred tokencache.Credential, _ bool, ask asker) (tokencache.Result, error) {
	result, err, _ := m.group.Do(cred.Org(), func() (any, error) { return asked(context.WithoutCancel(ctx), ask) })
	return result.(tokencache.Result), err
}

func (m *singleFlight) Delete(ctx context.Context, cred tokencache.Credential, send sender) error {
	if m.forget {
		m.group.Forget(cred.Org())
	}
	_, err := send(ctx)
	return err
}

func (m *singleFlight) Check() error { return nil }

// unfenced remembers by time alone. A delete forgets what is there, but not what is on its way.
type unfenced struct {
	mu     sync.Mutex
	tokens map[tokencache.Credential]remembered // guarded by mu
}

type remembered struct {
	token atlas.Token
	seq   int
	until time.Time
}

func (m *unfenced) Create(ctx context.Context, cred tokencache.Credential, fresh bool, ask asker) (tokencache.Result, error) {
	m.mu.Lock()
	found := m.tokens[cred]
	m.mu.Unlock()
	if !fresh && time.Now().Before(found.until) {
		return tokencache.Result{Token: found.token}, nil
	}
	result, err := asked(ctx, ask)
	if err == nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.tokens[cred] = remembered{token: result.Token, until: time.Now().Add(proofTTL)}
	}
	return result, err
}

func (m *unfenced) Delete(ctx context.Context, _ tokencache.Credential, send sender) error {
	_, err := send(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.tokens)
	return err
}

func (m *unfenced) Check() error { return nil }

// fencedAfter has a fence that moves when a delete has ended, and not before it begins: until then one caller is given the
// old token after another has the new one.
type fencedAfter struct {
	unfenced

	moved map[string]int // guarded by mu; by org
	seq   int            // guarded by mu
}

func (m *fencedAfter) Create(ctx context.Context, cred tokencache.Credential, fresh bool, ask asker) (tokencache.Result, error) {
	m.mu.Lock()
	found, seq := m.tokens[cred], m.seq
	usable := found.seq >= m.moved[cred.Org()] && time.Now().Before(found.until)
	m.mu.Unlock()
	if usable && !fresh {
		return tokencache.Result{Token: found.token}, nil
	}
	result, err := asked(ctx, ask)
	if err == nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.tokens[cred] = remembered{result.Token, seq, time.Now().Add(proofTTL)}
	}
	return result, err
}

func (m *fencedAfter) Delete(ctx context.Context, cred tokencache.Credential, send sender) error {
	_, err := send(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seq++
	m.moved[cred.Org()] = m.seq
	return err
}

// apart keeps tokens in Redis, and looks at the fence in a round trip of its own: between the two, and before what was asked
// for is stored, a delete can begin and end.
type apart struct {
	client rueidis.Client
}

func (m *apart) do(ctx context.Context, words ...string) string {
	<-time.After(time.Duration(mathrand.IntN(3)) * time.Millisecond) // a network that is not always as fast
	value, _ := m.client.Do(ctx, m.client.B().Arbitrary(words...).Build()).ToString()
	return value
}

func (m *apart) Create(ctx context.Context, cred tokencache.Credential, fresh bool, ask asker) (tokencache.Result, error) {
	key := "token " + cred.Org()
	if !fresh && m.do(ctx, "GET", "held "+cred.Org()) == "" {
		if token := m.do(ctx, "GET", key); token != "" {
			return tokencache.Result{Token: atlas.Token(token)}, nil
		}
	}
	result, err := asked(ctx, ask)
	if err == nil && m.do(ctx, "GET", "held "+cred.Org()) == "" {
		m.do(ctx, "SET", key, string(result.Token), "PX", fmt.Sprint(proofTTL.Milliseconds()))
		m.do(ctx, "SADD", "of "+cred.Org(), key)
	}
	return result, err
}

func (m *apart) Delete(ctx context.Context, cred tokencache.Credential, send sender) error {
	m.do(ctx, "SET", "held "+cred.Org(), rand.Text())
	forget := func() {
		for key := range strings.Lines(m.do(ctx, "EVAL", "return table.concat(redis.call('SMEMBERS', KEYS[1]), '\\n')", "1", "of "+cred.Org())) {
			m.do(ctx, "DEL", strings.TrimSpace(key))
		}
	}
	forget()
	_, err := send(ctx)
	forget()
	m.do(ctx, "DEL", "held "+cred.Org())
	return err
}

func (m *apart) Check() error { return nil }

func newUnfenced() unfenced { return unfenced{tokens: map[tokencache.Credential]remembered{}} }

var mutants = []struct {
	name     string
	replicas int
	ttl      time.Duration // of the real cache, where only its set-up is wrong
	make     func(t *testing.T, redis *redistest.Server) func(*testing.T, int) server.Cache
}{
	{"plain single flight", 1, 0, func(*testing.T, *redistest.Server) func(*testing.T, int) server.Cache {
		return func(*testing.T, int) server.Cache { return &singleFlight{} }
	}},
	{"single flight with Forget", 1, 0, func(*testing.T, *redistest.Server) func(*testing.T, int) server.Cache {
		return func(*testing.T, int) server.Cache { return &singleFlight{forget: true} }
	}},
	{"a memory without a fence", 1, 0, func(*testing.T, *redistest.Server) func(*testing.T, int) server.Cache {
		return func(*testing.T, int) server.Cache { m := newUnfenced(); return &m }
	}},
	{"a fence that moves only after the delete", 1, 0, func(*testing.T, *redistest.Server) func(*testing.T, int) server.Cache {
		return func(*testing.T, int) server.Cache {
			return &fencedAfter{unfenced: newUnfenced(), moved: map[string]int{}}
		}
	}},
	{"a memory of its own on each of two replicas", 2, proofTTL, nil},
	{"a value in Redis read apart from its fence", 2, 0, func(t *testing.T, redis *redistest.Server) func(*testing.T, int) server.Cache {
		return func(*testing.T, int) server.Cache {
			options, err := rueidis.ParseURL(redis.URL())
			if err != nil {
				t.Fatal(err)
			}
			options.DisableCache = true
			client, err := rueidis.NewClient(options)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(client.Close)
			return &apart{client}
		}
	}},
}

// TestProofRejects: each of the broken designs is found out, where the real one is not.
func TestProofRejects(t *testing.T) {
	for _, mutant := range mutants {
		t.Run(mutant.name, func(t *testing.T) {
			t.Parallel()
			const most = 40
			operations := 0
			for range most {
				s := setup{replicas: mutant.replicas, orgs: 4, ttl: mutant.ttl}
				if mutant.make != nil {
					var redis *redistest.Server
					if strings.Contains(mutant.name, "Redis") {
						redis = redistest.Start(t)
					}
					s.cache = mutant.make(t, redis)
				}
				w := newWorld(t, s)
				stopWeather := w.weather(slowAnswers...)
				h := w.run(t, traffic{operations: 800, clients: 12, deletes: .06, fresh: .1})
				stopWeather()
				operations += len(h.events)
				rejected, _ := h.illegal(strict, false, 20*time.Second)
				if violations := h.violations(); violations > 0 || len(rejected) > 0 {
					t.Logf("rejected after %d operations: %d violations of acknowledged deletes, %d of %d orgs illegal", operations, violations, len(rejected), s.orgs)
					return
				}
			}
			t.Errorf("not rejected in %d operations", operations)
		})
	}
}
