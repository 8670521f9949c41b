package tokencache

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
)

// replica is a Cache over Redis, with metrics of its own.
type replica struct {
	*testCache
	registry *prometheus.Registry
}

// newReplica does not wait for Redis.
func newReplica(t testing.TB, w *fakeAtlas, url string, cfg Config) *replica {
	t.Helper()
	r := &replica{registry: prometheus.NewRegistry()}
	if cfg.Redis == nil {
		cfg.Redis = &RedisConfig{Budget: time.Second} // a machine that is busy is not a Redis in trouble
	}
	cfg.Redis.URL, cfg.Registerer = url, r.registry
	if cfg.TTL == 0 {
		cfg.TTL = time.Hour
	}
	r.testCache = newTestCache(t, w, cfg)
	return r
}

// connected waits until the replica has Redis.
func (r *replica) connected() *replica {
	r.t.Helper()
	r.eventually("Redis is not there", func() bool {
		_, view := r.caching.store.get(r.t.Context(), request{cred: own(newJWT("nobody's", "u", time.Time{}))})
		return view.redis.now != 0
	})
	return r
}

// eventually waits for what happens in the background.
func (r *replica) eventually(otherwise string, is func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); {
		if time.Now().After(deadline) {
			r.t.Fatal(otherwise)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// counted is the value of a counter with the label values given.
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
			if family.GetName() == name && got == strings.Join(labels, " ")+" " {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// token creates, which must go well.
func (r *replica) token(jwt atlas.JWT) (atlas.Token, Status) {
	r.t.Helper()
	result, err := r.create(jwt)
	if err != nil {
		r.t.Errorf("create: %v", err)
	}
	return result.Token, result.Status
}

// wantHit creates and wants the org's present token, remembered.
func (r *replica) wantHit(jwt atlas.JWT) { r.t.Helper(); r.wantAnswer(jwt, true) }

// wantMiss creates and wants the org's present token, from Atlas.
func (r *replica) wantMiss(jwt atlas.JWT) { r.t.Helper(); r.wantAnswer(jwt, false) }

func (r *replica) wantAnswer(jwt atlas.JWT, hit bool) {
	r.t.Helper()
	want := r.world.token(jwt.UnverifiedClaims().OrgID)
	if token, status := r.token(jwt); token != want || status.Hit != hit || status.Stale {
		r.t.Errorf("got %q, %s; want %q, hit: %v", string(token), status, string(want), hit)
	}
}

func TestReplicasShareWhatTheyRemember(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	one := newReplica(t, w, server.URL(), Config{}).connected()
	two := newReplica(t, w, server.URL(), Config{}).connected()
	jwt, other := newJWT(orgA, "u", time.Time{}), newJWT(orgA, "other", time.Time{})
	far := newJWT(orgB, "u", time.Time{})
	one.wantMiss(jwt)
	one.wantMiss(far)
	two.wantHit(jwt)
	two.wantMiss(other)
	one.wantHit(other)
	for range 10 {
		two.delete(other)
		one.wantMiss(jwt)
		two.wantHit(jwt)
		two.wantMiss(other)
	}
	two.wantHit(far)
	two.delete(newJWT("", "u", time.Time{})) // of whatever org
	one.wantMiss(far)
	if got := one.counted("tokend_cache_rejected_total", "seal") + two.counted("tokend_cache_rejected_total", "expired"); got != 0 {
		t.Errorf("%v values were rejected as altered or replayed", got)
	}
	if err := errors.Join(one.Check(), two.Check()); err != nil {
		t.Error(err)
	}
}

func TestRedisForgetsARefusedCredential(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{StaleIfError: time.Hour}).connected()
	jwt := newJWT(orgA, "u", time.Time{})
	r.wantMiss(jwt)
	w.failing(statusError(atlas.OpCreate, 401))
	if _, err := r.Create(t.Context(), own(jwt), true, w.ask(jwt)); err == nil {
		t.Error("no-cache was answered from Redis")
	}
	w.failing(statusError(atlas.OpCreate, 503))
	if _, err := r.create(jwt); err == nil {
		t.Error("a refused credential was answered from Redis")
	}
}

// The refusal came while Redis could not be reached.
func TestRedisForgetsARefusedCredentialLater(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	proxy := server.NewProxy()
	cut := newReplica(t, w, proxy.URL(), Config{}).connected()
	other := newReplica(t, w, server.URL(), Config{}).connected()
	jwt := newJWT(orgA, "u", time.Time{})
	other.wantMiss(jwt)
	proxy.Cut()
	w.failing(statusError(atlas.OpCreate, 401))
	if _, err := cut.create(jwt); err == nil {
		t.Error("answered without Redis and without Atlas")
	}
	w.failing(nil)
	proxy.Mend()
	other.eventually("the token of a refused credential is still there", func() bool {
		return server.Command("EXISTS", tokenKey(own(jwt))) == "0"
	})
}

func TestRedisTTLAgeAndStale(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{TTL: 500 * time.Millisecond, StaleIfError: time.Hour}).connected()
	jwt := newJWT(orgA, "u", time.Time{})
	r.wantMiss(jwt)
	token, status := r.token(jwt)
	if token == "" || !status.Hit || status.TTL > 500*time.Millisecond || status.Age < 0 || status.Age+status.TTL != 500*time.Millisecond {
		t.Errorf("got %+v", status)
	}
	w.failing(statusError(atlas.OpCreate, 503))
	r.eventually("never stale", func() bool {
		_, status := r.token(jwt)
		return status.Stale
	})
	r.deleteAnd(jwt, nil)
	if _, err := r.create(jwt); err == nil {
		t.Error("served across a delete")
	}
}

func (r *replica) deleteAnd(jwt atlas.JWT, want error) {
	r.t.Helper()
	if err := r.Delete(r.t.Context(), own(jwt), r.world.sendAnd(jwt, want)); !errors.Is(err, want) {
		r.t.Errorf("delete: %v, want %v", err, want)
	}
}

// Nothing outlives the JWT, by Redis's clock, which is this machine's.
func TestExpOfTheJWTShortensInRedis(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{}).connected()
	exp := time.Now().Add(time.Minute).Truncate(time.Second)
	jwt := newJWT(orgA, "u", exp)
	r.wantMiss(jwt)
	r.wantHit(jwt)
	end, err := strconv.ParseInt(server.Command("PEXPIRETIME", tokenKey(own(jwt))), 10, 64)
	if err != nil || end > exp.UnixMilli() || end < exp.Add(-2*time.Second).UnixMilli() {
		t.Errorf("kept until %d (%v), and the JWT ends at %d", end, err, exp.UnixMilli())
	}
	past := newJWT(orgB, "u", time.Now().Add(-time.Minute))
	r.wantMiss(past)
	r.wantMiss(past)
}

// What a delete or a create leaves in Redis for an org that nobody has verified is gone after a call's time.
func TestFencesAreKeptNoLongerThanNeeded(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{TTL: time.Hour, CallTimeout: 10 * time.Second, SettleTime: 5 * time.Second}).connected()
	forged, good := newJWT(orgB, "u", time.Time{}), newJWT(orgA, "u", time.Time{})
	left := func(key string) time.Duration {
		t.Helper()
		ms, err := strconv.ParseInt(server.Command("PTTL", key), 10, 64)
		if err != nil || ms <= 0 {
			t.Fatalf("PTTL is %d, %v", ms, err)
		}
		return time.Duration(ms) * time.Millisecond
	}
	w.failing(statusError(atlas.OpCreate, 401))
	_, _ = r.create(forged)
	if d := left(orgKey(orgB)); d > 25*time.Second {
		t.Errorf("a fence that nothing is behind is kept for %v", d)
	}
	r.deleteAnd(forged, statusError(atlas.OpDelete, 401))
	if d := left(orgKey(orgB)); d > 25*time.Second {
		t.Errorf("a fence that nothing is behind is kept for %v", d)
	}
	w.failing(nil)
	r.wantMiss(good)
	for _, key := range []string{keyAll, orgKey(orgA)} {
		if fence, value := left(key), left(tokenKey(own(good))); fence < value {
			t.Errorf("%s is kept for %v, and what is behind it for %v", key, fence, value)
		}
	}
}

func TestAReplicaThatDiesInMidDelete(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t), newFakeAtlas()
	cfg := Config{CallTimeout: time.Second, SettleTime: time.Second}
	dead := newReplica(t, w, server.URL(), cfg).connected()
	r := newReplica(t, w, server.URL(), cfg).connected()
	jwt := newJWT(orgA, "u", time.Time{})
	r.wantMiss(jwt)
	start := time.Now()
	dead.caching.store.deletion(orgA).begin(t.Context()) // it never ends
	dead.Close()
	r.wantMiss(jwt)
	r.wantMiss(jwt)
	r.eventually("the fence is held for ever", func() bool {
		_, status := r.token(jwt)
		return status.Hit
	})
	if took := time.Since(start); took < 2*time.Second-50*time.Millisecond || took > 10*time.Second {
		t.Errorf("held for %v, want 2s", took)
	}
}

// An unknown outcome holds the fence for every replica.
func TestAnUnknownOutcomeHoldsTheFenceInRedis(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t), newFakeAtlas()
	one := newReplica(t, w, server.URL(), Config{SettleTime: time.Second}).connected()
	two := newReplica(t, w, server.URL(), Config{SettleTime: time.Second}).connected()
	jwt := newJWT(orgA, "u", time.Time{})
	one.accept(jwt)
	start := time.Now()
	one.deleteAnd(jwt, statusError(atlas.OpDelete, 504))
	two.wantMiss(jwt)
	two.wantMiss(jwt)
	two.eventually("the fence is held for ever", func() bool {
		_, status := two.token(jwt)
		return status.Hit
	})
	if took := time.Since(start); took < time.Second-50*time.Millisecond {
		t.Errorf("held for %v, want 1s", took)
	}
}

// Where a delete may have been done, its own credential is forgotten, also by a replica that has not seen it accepted.
func TestAnUnknownFirstDeleteForgetsItsOwnInRedis(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	one, two := newReplica(t, w, server.URL(), Config{}).connected(), newReplica(t, w, server.URL(), Config{}).connected()
	jwt := newJWT(orgA, "u", time.Time{})
	one.wantMiss(jwt)
	two.deleteAnd(jwt, statusError(atlas.OpDelete, 504))
	one.wantMiss(jwt)
}

func TestAContradictionForgetsBothInRedis(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{}).connected()
	jwt, other := newJWT(orgA, "u", time.Time{}), newJWT(orgA, "other", time.Time{})
	r.wantMiss(jwt)
	w.replace(orgA) // at Atlas itself
	r.wantMiss(other)
	r.wantMiss(jwt)
	r.wantMiss(other)
	r.wantHit(jwt)
	r.wantHit(other)
}

// While a delete is in flight nobody reads or fills, and a create that began before it does not fill after it.
func TestADeleteHoldsTheFenceInRedis(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	one := newReplica(t, w, server.URL(), Config{}).connected()
	two := newReplica(t, w, server.URL(), Config{}).connected()
	jwt, other := newJWT(orgA, "u", time.Time{}), newJWT(orgA, "other", time.Time{})
	one.wantMiss(jwt)
	_, err := two.Create(t.Context(), own(other), false, func(ctx context.Context) (Answer, error) {
		answer, err := w.ask(other)(ctx)
		_ = one.Delete(ctx, own(jwt), func(ctx context.Context) (atlas.JWT, error) {
			two.wantMiss(jwt)
			two.wantMiss(jwt)
			return w.send(jwt)(ctx)
		})
		return answer, err
	})
	if err != nil {
		t.Fatal(err)
	}
	two.wantMiss(other)
	two.wantMiss(jwt)
	one.wantHit(jwt)
}

// A replica that remembers for less time than another is bound to its own, as after the setting was lowered: that is what a
// deleter cut off from Redis waits for.
func TestALowerTTLBindsWhatIsThereAlready(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	jwt := newJWT(orgA, "u", time.Time{})
	long := newReplica(t, w, server.URL(), Config{TTL: time.Hour, StaleIfError: time.Hour}).connected()
	short := newReplica(t, w, server.URL(), Config{TTL: 300 * time.Millisecond}).connected()
	long.wantMiss(jwt)
	long.wantHit(jwt)
	<-time.After(400 * time.Millisecond)
	if found, _ := short.caching.store.get(t.Context(), request{cred: own(jwt)}); found.there() {
		t.Errorf("remembered for longer than the TTL: %v old", found.age)
	}
	long.wantHit(jwt)
}
