package redis

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

const (
	orgA = "7d1b7c4e-0000-4000-8000-00000000000a"
	orgB = "7d1b7c4e-0000-4000-8000-00000000000b"
)

// user is a credential.
type user struct{ org, name string }

func (u user) item() *Item {
	name, key := sha256.Sum256([]byte("name"+u.org+u.name)), sha256.Sum256([]byte("key"+u.org+u.name))
	return NewItem(u.org, name[:16], key[:])
}

func (u user) tokenKey() string { return u.item().tokenKey }

// fakeAtlas has one token for each org, which a delete replaces.
type fakeAtlas struct {
	mu      sync.Mutex
	deletes map[string]int // guarded by mu; by org
}

func newFakeAtlas() *fakeAtlas { return &fakeAtlas{deletes: map[string]int{}} }

func (w *fakeAtlas) token(org string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Sprintf("token %d of %s", w.deletes[org], org)
}

func (w *fakeAtlas) replace(org string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deletes[org]++
}

// replica is a Store with its own metrics, used as package tokencache does.
type replica struct {
	*Store
	t        testing.TB
	world    *fakeAtlas
	registry *prometheus.Registry
	log      *syncLog
}

// syncLog is a log for several goroutines.
type syncLog struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *syncLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *syncLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newReplica does not wait for Redis. Its budget is long, so that a busy machine does not look like
// a slow Redis.
func newReplica(t testing.TB, w *fakeAtlas, url string, cfg Config) *replica {
	t.Helper()
	cfg.URL, cfg.Budget = url, time.Second
	return newReplicaWith(t, w, cfg)
}

func newReplicaWith(t testing.TB, w *fakeAtlas, cfg Config) *replica {
	t.Helper()
	r := &replica{t: t, world: w, registry: prometheus.NewRegistry(), log: &syncLog{}}
	cfg.Registerer, cfg.Logger = r.registry, slog.New(slog.NewTextHandler(r.log, nil))
	cfg.TTL = cmp.Or(cfg.TTL, time.Hour)
	if cfg.CallTimeout == 0 {
		cfg.CallTimeout, cfg.SettleTime = 30*time.Second, 30*time.Second
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	r.Store = s
	return r
}

// connected waits until Redis has answered the replica.
func (r *replica) connected() *replica {
	r.t.Helper()
	r.eventually("Redis is not there", func() bool {
		_, v := r.Get(r.t.Context(), user{"connected", "u"}.item())
		return v.now != 0
	})
	return r
}

// eventually waits until is returns true.
func (r *replica) eventually(otherwise string, is func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s; Check says %v", otherwise, r.Check())
		}
		<-time.After(5 * time.Millisecond)
	}
}

// counted returns a counter with these label values.
func (r *replica) counted(name string, labels ...string) float64 {
	r.t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	sum := 0.0
	for _, family := range families {
		for _, m := range family.GetMetric() {
			got := ""
			for _, label := range m.GetLabel() {
				got += label.GetValue() + " "
			}
			if family.GetName() == name && got == strings.Join(append(labels, ""), " ") {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// rejected returns how many values were rejected for these reasons.
func (r *replica) rejected(reasons ...string) (n float64) {
	for _, reason := range reasons {
		n += r.counted("tokend_cache_rejected_total", reason)
	}
	return n
}

// create returns a cached token, or Atlas's, which it caches.
func (r *replica) create(u user) (token string, found Found) {
	r.t.Helper()
	return r.createDuring(u, func() {})
}

// createDuring calls during between Atlas's answer and its arrival.
func (r *replica) createDuring(u user, during func()) (token string, found Found) {
	r.t.Helper()
	item := u.item()
	found, v := r.Get(context.Background(), item)
	if found.Token != "" && found.TTL > 0 {
		return found.Token, found
	}
	token = r.world.token(u.org)
	during()
	r.Put(context.Background(), v, item, token, time.Hour)
	return token, Found{}
}

// hits reports whether a create is answered from the cache.
func (r *replica) hits(u user) bool {
	_, found := r.create(u)
	return found.Token != ""
}

// wantHit creates and wants the org's present token, cached.
func (r *replica) wantHit(u user) { r.t.Helper(); r.wantAnswer(u, true) }

// wantMiss creates and wants the org's present token, from Atlas.
func (r *replica) wantMiss(u user) { r.t.Helper(); r.wantAnswer(u, false) }

func (r *replica) wantAnswer(u user, hit bool) {
	r.t.Helper()
	want := r.world.token(u.org)
	if token, found := r.create(u); token != want || hit != (found.Token != "") {
		r.t.Errorf("got %q, hit: %v; want %q, hit: %v; Check says %v", token, found.Token != "", want, hit, r.Check())
	}
}

// deleteAnd deletes the token of an org, or none if the outcome is NotDone. during is called before
// Atlas carries it out.
func (r *replica) deleteAnd(ctx context.Context, org string, outcome Outcome, during func()) error {
	hold := ""
	if org != "" {
		hold = rand.Text()
		r.Hold(org, hold)
	}
	during()
	if outcome != NotDone {
		r.world.replace(org)
	}
	return r.Settle(ctx, org, hold, outcome)
}

func (r *replica) delete(org string) {
	r.t.Helper()
	if err := r.deleteAnd(r.t.Context(), org, Done, func() {}); err != nil {
		r.t.Errorf("delete: %v", err)
	}
}
