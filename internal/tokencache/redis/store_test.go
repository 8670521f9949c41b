package redis

import (
	"strconv"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
)

func TestReplicasShareTokens(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t), newFakeAtlas()
	one := newReplica(t, w, server.URL(), Config{}).connected()
	two := newReplica(t, w, server.URL(), Config{}).connected()
	u, other, far := user{orgA, "u"}, user{orgA, "other"}, user{orgB, "u"}
	one.wantMiss(u)
	one.wantMiss(far)
	two.wantHit(u)
	two.wantMiss(other)
	one.wantHit(other)
	for range 10 {
		two.delete(orgA)
		one.wantMiss(u)
		two.wantHit(u)
		two.wantMiss(other)
	}
	two.wantHit(far)
	two.delete("") // of every org
	one.wantMiss(far)
	if n := one.rejected("seal", "expired") + two.rejected("seal", "expired"); n != 0 {
		t.Errorf("%v values count as altered or replayed", n)
	}
}

func TestDrop(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t), newFakeAtlas()
	proxy := server.NewProxy()
	r := newReplica(t, w, proxy.URL(), Config{}).connected()
	u, other := user{orgA, "u"}, user{orgA, "other"}
	r.wantMiss(u)
	r.wantMiss(other)
	r.Drop(t.Context(), u.item())
	r.wantMiss(u)
	r.wantHit(other)
	proxy.Cut()
	r.Drop(t.Context(), other.item())
	proxy.Restore()
	r.eventually("the token is still there", func() bool { return server.Command("EXISTS", other.tokenKey()) == "0" })
}

func TestTTLAgeAndStale(t *testing.T) {
	t.Parallel()
	const ttl = 300 * time.Millisecond
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{TTL: ttl, StaleIfError: time.Hour}).connected()
	u := user{orgA, "u"}
	r.wantMiss(u)
	if _, found := r.create(u); found.Token == "" || found.TTL > ttl || found.Age < 0 || found.Age+found.TTL != ttl {
		t.Errorf("got %+v", found)
	}
	r.eventually("never stale", func() bool {
		found, _ := r.Get(t.Context(), u.item())
		return found.Token != "" && found.TTL <= 0
	})
	r.delete(orgA)
	if found, _ := r.Get(t.Context(), u.item()); found.Token != "" {
		t.Error("served across a delete")
	}
}

// TestFault81ValueReadWhenItExpires reads a value until the millisecond in which it expires. Then
// it is an ordinary miss.
func TestFault81ValueReadWhenItExpires(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{TTL: 10 * time.Millisecond}).connected()
	u := user{orgA, "u"}
	hits := 0
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		if r.hits(u) {
			hits++
		}
	}
	if n := r.rejected("expired", "seal", "fence"); n != 0 || hits == 0 {
		t.Errorf("%v values were rejected, with %d hits", n, hits)
	}
}

func TestLifeBoundsValue(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{TTL: 2 * time.Hour}).connected()
	u := user{orgA, "u"}
	_, v := r.Get(t.Context(), u.item())
	r.Put(t.Context(), v, u.item(), "token", -time.Minute)
	if server.Command("EXISTS", u.tokenKey()) != "0" {
		t.Error("stored without a life")
	}
	r.Put(t.Context(), v, u.item(), "token", time.Minute)
	end, err := strconv.ParseInt(server.Command("PEXPIRETIME", u.tokenKey()), 10, 64)
	if left := time.Until(time.UnixMilli(end)); err != nil || left > time.Minute || left < 30*time.Second {
		t.Errorf("kept for %v (%v), want a minute", left, err)
	}
}

// TestFenceLifetime keeps a fence as long as the values behind it, or as long as a call may take: a
// caller may have invented the org.
func TestFenceLifetime(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{TTL: time.Hour, CallTimeout: 10 * time.Second, SettleTime: 5 * time.Second}).connected()
	left := func(key string) time.Duration {
		t.Helper()
		ms, err := strconv.ParseInt(server.Command("PTTL", key), 10, 64)
		if err != nil || ms <= 0 {
			t.Fatalf("PTTL is %d, %v", ms, err)
		}
		return time.Duration(ms) * time.Millisecond
	}
	_, _ = r.Get(t.Context(), user{orgB, "u"}.item())
	if d := left(orgKey(orgB)); d > 25*time.Second {
		t.Errorf("a fence without a value is kept for %v", d)
	}
	u := user{orgA, "u"}
	r.wantMiss(u)
	for _, key := range []string{keyAll, orgKey(orgA)} {
		if fence, value := left(key), left(u.tokenKey()); fence < value {
			t.Errorf("%s is kept for %v, and what is behind it for %v", key, fence, value)
		}
	}
}

// TestFault62KilledDuringADelete kills a replica after Atlas has carried its delete out. Nothing is
// read until its hold ends, and nothing older after that.
func TestFault62KilledDuringADelete(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t), newFakeAtlas()
	o := Config{CallTimeout: 200 * time.Millisecond, SettleTime: 200 * time.Millisecond}
	dead, r := newReplica(t, w, server.URL(), o).connected(), newReplica(t, w, server.URL(), o).connected()
	u := user{orgA, "u"}
	r.wantMiss(u)
	r.wantHit(u)
	dead.Hold(orgA, "hold")
	r.wantMiss(u)
	w.replace(orgA)
	r.eventually("the hold of a dead replica does not end", func() bool { return r.hits(u) })
	r.wantHit(u)
}

func TestUnknownOutcomeHoldsTheFence(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{CallTimeout: time.Minute, SettleTime: 300 * time.Millisecond}).connected()
	u := user{orgA, "u"}
	r.wantMiss(u)
	start := time.Now()
	if err := r.deleteAnd(t.Context(), orgA, Unknown, func() {}); err != nil {
		t.Error(err)
	}
	r.wantMiss(u)
	w.replace(orgA) // late
	r.eventually("nothing is cached again", func() bool { return r.hits(u) })
	if took := time.Since(start); took < 300*time.Millisecond {
		t.Errorf("cached after %v, before the outcome was settled", took)
	}
	r.wantHit(u)
}

// TestDeleteThatWasNotDoneLeavesTokens leaves the cache if Atlas did not carry the delete out.
func TestDeleteThatWasNotDoneLeavesTokens(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{}).connected()
	u := user{orgA, "u"}
	r.wantMiss(u)
	if err := r.deleteAnd(t.Context(), orgA, NotDone, func() { r.wantMiss(u) }); err != nil {
		t.Error(err)
	}
	r.wantHit(u)
}

// TestAnotherTokenRemovesTheFirst removes a token that another client of Atlas has deleted.
func TestAnotherTokenRemovesTheFirst(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{}).connected()
	u, other := user{orgA, "u"}, user{orgA, "other"}
	r.wantMiss(u)
	w.replace(orgA)
	r.wantMiss(other)
	r.wantMiss(u)
	r.wantMiss(other)
	r.wantHit(u)
	r.wantHit(other)
}

// TestDeleteHoldsOrg reads nothing during a delete, and does not store what was requested before
// it.
func TestDeleteHoldsOrg(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t), newFakeAtlas()
	one := newReplica(t, w, server.URL(), Config{}).connected()
	two := newReplica(t, w, server.URL(), Config{}).connected()
	u, other := user{orgA, "u"}, user{orgA, "other"}
	one.wantMiss(u)
	two.createDuring(other, func() {
		_ = one.deleteAnd(t.Context(), orgA, Done, func() {
			two.wantMiss(u)
			two.wantMiss(u)
		})
	})
	two.wantMiss(other) // another token than the one that was noted last
	two.wantMiss(u)
	one.wantHit(u)
}

// TestOlderAnswerDoesNotReplaceNewer keeps the answer to the call that began later.
func TestOlderAnswerDoesNotReplaceNewer(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	r := newReplica(t, newFakeAtlas(), server.URL(), Config{}).connected()
	item := user{orgA, "u"}.item()
	_, older := r.Get(t.Context(), item)
	younger := older
	for younger.now <= older.now {
		_, younger = r.Get(t.Context(), item)
	}
	r.Put(t.Context(), younger, item, "token", time.Hour)
	value := server.Command("GET", item.tokenKey)
	r.Put(t.Context(), older, item, "token", time.Hour)
	if server.Command("GET", item.tokenKey) != value {
		t.Error("an older answer replaced a younger")
	}
	r.Put(t.Context(), older, item, "another token", -time.Minute)
	if found, _ := r.Get(t.Context(), item); found.Token != "" {
		t.Error("kept although Atlas had another token")
	}
}

// TestShorterTTLApplies applies a replica's own TTL to values that were stored with a longer one. A
// deleter that cannot reach Redis waits for its own TTL only.
func TestShorterTTLApplies(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t), newFakeAtlas()
	u := user{orgA, "u"}
	long := newReplica(t, w, server.URL(), Config{TTL: time.Hour, StaleIfError: time.Hour}).connected()
	short := newReplica(t, w, server.URL(), Config{TTL: 100 * time.Millisecond}).connected()
	long.wantMiss(u)
	long.wantHit(u)
	short.eventually("served for longer than the TTL", func() bool {
		found, _ := short.Get(t.Context(), u.item())
		return found.Token == ""
	})
	long.wantHit(u)
}
