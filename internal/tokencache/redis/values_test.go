package redis

import (
	"encoding/base64"
	"encoding/hex"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
)

func TestFault58FenceLost(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(*redistest.Server){
		"DEL of the org's": func(s *redistest.Server) { s.Command("DEL", orgKey(orgA)) },
		"DEL of all's":     func(s *redistest.Server) { s.Command("DEL", keyAll) },
		"epoch only":       func(s *redistest.Server) { s.Command("HDEL", orgKey(orgA), "epoch") },
		"FLUSHALL":         func(s *redistest.Server) { s.Command("FLUSHALL") },
		"restart":          func(s *redistest.Server) { s.Restart() },
	} {
		t.Run(name, func(t *testing.T) {
			server, w := redistest.Start(t), newFakeAtlas()
			r := newReplica(t, w, server.URL(), Config{}).connected()
			u := user{orgA, "u"}
			r.wantMiss(u)
			r.wantHit(u)
			lose(server)
			w.replace(orgA) // a delete whose moves are lost
			r.wantMiss(u)
			r.eventually("never cached again", func() bool { return r.hits(u) })
			r.wantHit(u)
		})
	}
}

// TestFault58FenceLostDuringACall loses the fence during a create, whose answer is then not stored.
func TestFault58FenceLostDuringACall(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{}).connected()
	u := user{orgA, "u"}
	r.createDuring(u, func() {
		w.replace(orgA)
		server.Command("FLUSHALL")
	})
	r.wantMiss(u)
	r.wantHit(u)
}

func TestFault58FenceEvicted(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t, "--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru", "--maxmemory-samples", "64"), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{}).connected()
	u := user{orgA, "u"}
	r.wantMiss(u)
	server.Command("COPY", u.tokenKey(), "kept")
	const junk = `
for i = 1, 200 do redis.call('SET', 'junk ' .. KEYS[1] .. ' ' .. i, string.rep('x', 10000)) end
return redis.call('GET', 'kept')`
	round := 0
	r.eventually("the fence is not evicted", func() bool {
		round++
		server.Command("EVAL", junk, "1", strconv.Itoa(round))
		return server.Command("EXISTS", orgKey(orgA)) == "0"
	})
	w.replace(orgA)
	server.Command("COPY", "kept", u.tokenKey(), "REPLACE")
	r.wantMiss(u)
}

func TestFault59WritesLostDuringADelete(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t), newFakeAtlas()
	one := newReplica(t, w, server.URL(), Config{}).connected()
	two := newReplica(t, w, server.URL(), Config{}).connected()
	u := user{orgA, "u"}
	two.wantMiss(u)
	err := one.deleteAnd(t.Context(), orgA, Done, func() {
		server.Command("FLUSHALL") // the hold is lost
		two.wantMiss(u)
		two.wantHit(u) // not deleted yet
	})
	if err != nil {
		t.Fatal(err)
	}
	two.wantMiss(u)
}

// TestFault59OlderStateRestored restores an older state of all keys. It cannot be detected, but it
// lasts no longer than the TTL and is counted.
func TestFault59OlderStateRestored(t *testing.T) {
	t.Parallel()
	const ttl = 2 * time.Second // enough to copy the keys before they expire
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{TTL: ttl}).connected()
	u := user{orgA, "u"}
	r.wantMiss(u)
	keys := []string{keyAll, orgKey(orgA), u.tokenKey()}
	for _, key := range keys {
		server.Command("COPY", key, "old "+key)
		server.Command("PERSIST", "old "+key)
	}
	r.delete(orgA)
	for _, key := range keys {
		server.Command("COPY", "old "+key, key, "REPLACE")
	}
	r.eventually("a value that is there too long is not counted", func() bool {
		_, _ = r.Get(t.Context(), u.item())
		return r.rejected("expired") > 0
	})
	r.wantMiss(u)
}

func TestFault60AlteredAndReplayedValues(t *testing.T) {
	t.Parallel()
	u, other := user{orgA, "u"}, user{orgA, "other"}
	name, otherName := u.tokenKey(), other.tokenKey()
	for what, tc := range map[string]struct {
		tamper func(*replica, *redistest.Server)
		reason string
	}{
		"version":   {func(_ *replica, s *redistest.Server) { s.Command("SETRANGE", name, "0", "x") }, ""}, // of a newer build
		"expiry":    {func(_ *replica, s *redistest.Server) { s.Command("SETRANGE", name, "17", "x") }, "seal"},
		"epoch":     {func(_ *replica, s *redistest.Server) { s.Command("SETRANGE", name, "70", "x") }, "seal"},
		"token":     {func(_ *replica, s *redistest.Server) { s.Command("SETRANGE", name, "105", "xyz") }, "seal"},
		"cut":       {func(_ *replica, s *redistest.Server) { s.Command("SET", name, "\x01short") }, "seal"},
		"empty":     {func(_ *replica, s *redistest.Server) { s.Command("SET", name, "") }, "seal"},
		"longer":    {func(_ *replica, s *redistest.Server) { s.Command("APPEND", name, "x") }, "seal"},
		"another's": {func(_ *replica, s *redistest.Server) { s.Command("COPY", otherName, name, "REPLACE") }, "seal"},
		"replayed": {func(r *replica, s *redistest.Server) {
			s.Command("COPY", name, "old")
			s.Command("PERSIST", "old")
			r.delete(orgA)
			s.Command("COPY", "old", name, "REPLACE")
		}, "fence"},
	} {
		t.Run(what, func(t *testing.T) {
			server, w := redistest.Start(t), newFakeAtlas()
			r := newReplica(t, w, server.URL(), Config{}).connected()
			r.wantMiss(u)
			r.wantMiss(other)
			tc.tamper(r, server)
			r.wantMiss(u)
			for _, reason := range []string{"seal", "fence", "expired"} {
				want := 0.0
				if reason == tc.reason {
					want = 1
				}
				if got := r.counted("tokend_cache_rejected_total", reason); got != want {
					t.Errorf("%s: %v, want %v", reason, got, want)
				}
			}
			r.wantHit(u)
		})
	}
}

// TestFault60WrongTypes treats a value of another type under a key of the cache as an error.
func TestFault60WrongTypes(t *testing.T) {
	t.Parallel()
	u := user{orgA, "u"}
	for _, key := range []string{keyAll, orgKey(orgA), u.tokenKey()} {
		server, w := redistest.Start(t), newFakeAtlas()
		r := newReplica(t, w, server.URL(), Config{}).connected()
		r.wantMiss(u)
		server.Command("DEL", key)
		server.Command("LPUSH", key, "x")
		r.wantMiss(u)
		if r.Check() == nil {
			t.Errorf("%s: Check has nothing to say", key)
		}
	}
}

// TestFault60AlteredFences alters fences, which causes misses or a hold and nothing else.
func TestFault60AlteredFences(t *testing.T) {
	t.Parallel()
	u := user{orgA, "u"}
	for what, words := range map[string][]string{
		"epoch":       {"HSET", orgKey(orgA), "epoch", strings.Repeat("z", epochLen)},
		"short epoch": {"HSET", orgKey(orgA), "epoch", "z"},
		"held":        {"HSET", orgKey(orgA), "hold:x", "9999999999999"},
		"bad hold":    {"HSET", orgKey(orgA), "hold:x", "soon"},
	} {
		t.Run(what, func(t *testing.T) {
			server, w := redistest.Start(t), newFakeAtlas()
			r := newReplica(t, w, server.URL(), Config{}).connected()
			r.wantMiss(u)
			server.Command(words...)
			w.replace(orgA)
			r.wantMiss(u)
		})
	}
}

func TestRedisHoldsNoSecret(t *testing.T) {
	t.Parallel()
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{}).connected()
	u, other := user{orgA, "planted-user"}, user{orgB, "planted-user"}
	secrets := []string{orgA, orgB, w.token(orgA), w.token(orgB), "planted-user"}
	r.wantMiss(u)
	r.wantMiss(other)
	r.delete(orgB)
	r.wantMiss(other)
	secrets = append(secrets, w.token(orgB))
	_ = r.deleteAnd(t.Context(), orgA, Unknown, func() {})

	var dump strings.Builder
	keys := strings.Split(server.Command("KEYS", "*"), "\n")
	for _, key := range keys {
		command := "GET"
		if server.Command("TYPE", key) == "hash" {
			command = "HGETALL"
		}
		dump.WriteString(key + "\n" + server.Command(command, key) + "\n")
	}
	if len(keys) < 5 {
		t.Fatalf("%d keys: this test looks at nothing", len(keys))
	}
	seen := dump.String()
	for i, secret := range secrets {
		encoded := hex.EncodeToString([]byte(secret))
		for _, form := range []string{
			secret, encoded, strings.ToUpper(encoded), strings.ReplaceAll(secret, "-", ""),
			strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(secret)), "="), base64.RawURLEncoding.EncodeToString([]byte(secret)),
		} {
			if strings.Contains(seen, form) {
				t.Errorf("secret %d of %d is in Redis", i, len(secrets))
			}
		}
	}
}
