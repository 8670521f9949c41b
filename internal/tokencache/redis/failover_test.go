package redis

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
)

// TestFault82Restart serves nothing after a restart, because it is not known how much Redis has
// lost.
func TestFault82Restart(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		args []string
		save bool
	}{
		"snapshot":         {nil, true},
		"append-only file": {[]string{"--appendonly", "yes", "--appendfsync", "always"}, false},
		"empty":            {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, w := redistest.Start(t, tc.args...), newFakeAtlas()
			r := newReplica(t, w, server.URL(), Config{StaleIfError: time.Hour}).connected()
			u, far := user{orgA, "u"}, user{orgB, "u"}
			r.wantMiss(u)
			r.wantMiss(far)
			r.wantHit(u)
			if tc.save {
				server.Command("SAVE")
			}
			r.delete(orgA)
			server.Restart()
			if there := server.Command("EXISTS", far.tokenKey()) == "1"; there != (name != "empty") {
				t.Fatalf("the values are there after the restart: %t", there)
			}
			r.eventually("Redis is not used again", func() bool {
				_, v := r.Get(t.Context(), user{"another org", "u"}.item())
				return v.now != 0
			})
			for _, u := range []user{u, far} {
				r.wantMiss(u)
				r.create(u) // the note of the token is as old as the value was
				r.wantHit(u)
			}
		})
	}
}

// TestFault82Failover promotes a replica, which has the values of its primary and may lack the
// deletes.
func TestFault82Failover(t *testing.T) {
	t.Parallel()
	a, w := redistest.Start(t), newFakeAtlas()
	b := redistest.Start(t)
	u := user{orgA, "u"}
	atA := newReplica(t, w, a.URL(), Config{}).connected()
	atA.wantMiss(u)
	atA.wantHit(u)
	b.Follow(a)
	b.Promote()
	w.replace(orgA) // a delete that B has not heard of
	if b.Command("EXISTS", u.tokenKey()) != "1" {
		t.Fatal("the value is not there: this tests nothing")
	}
	atB := newReplica(t, w, b.URL(), Config{}).connected()
	atB.wantMiss(u)
	atB.wantMiss(u) // the note of the token is as old as the value was
	atB.wantHit(u)

	// And back again, to a process that has values of its own from before.
	a.Follow(b)
	a.Promote()
	w.replace(orgA)
	atA.eventually("A is not used again", func() bool {
		_, v := atA.Get(t.Context(), user{"another org", "u"}.item())
		return v.now != 0
	})
	atA.wantMiss(u)
	atA.wantMiss(u)
	atA.wantHit(u)
}

// TestFault83DemotedOrIsolated connects a replica of the service to a Redis that is no longer the
// primary, or knows that it is isolated. It reads nothing there, whatever the TTL, and its deletes
// are not acknowledged.
func TestFault83DemotedOrIsolated(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		args []string
		fall func(old, other *redistest.Server)
		word string
	}{
		"demoted":           {nil, (*redistest.Server).Follow, "READONLY"},
		"demoted, writable": {[]string{"--replica-read-only", "no"}, (*redistest.Server).Follow, "READONLY"},
		"without a replica": {nil, func(old, _ *redistest.Server) {
			old.Command("CONFIG", "SET", "min-replicas-to-write", "1")
		}, "NOREPLICAS"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			old, other, w := redistest.Start(t, tc.args...), redistest.Start(t, tc.args...), newFakeAtlas()
			r := newReplica(t, w, old.URL(), Config{TTL: 10 * time.Hour, StaleIfError: 10 * time.Hour}).connected()
			u := user{orgA, "u"}
			r.wantMiss(u)
			r.wantHit(u)
			other.Follow(old)
			other.Promote()
			tc.fall(old, other)
			if found, v := r.Get(t.Context(), u.item()); found.Token != "" || v.now != 0 {
				t.Errorf("read from a Redis that may not be written to: %+v", found)
			}
			if err := r.Check(); err == nil || !strings.Contains(err.Error(), tc.word) {
				t.Errorf("Check says %v, want %s", err, tc.word)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if r.deleteAnd(ctx, orgA, Done, func() {}) == nil {
				t.Error("a delete was acknowledged")
			}
		})
	}
}
