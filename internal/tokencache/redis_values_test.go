package tokencache

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
)

func TestFault58FenceLost(t *testing.T) {
	for name, lose := range map[string]func(*redistest.Server){
		"DEL of the org's":  func(s *redistest.Server) { s.Command("DEL", orgKey(orgA)) },
		"DEL of everyone's": func(s *redistest.Server) { s.Command("DEL", keyAll) },
		"epoch only":        func(s *redistest.Server) { s.Command("HDEL", orgKey(orgA), "epoch") },
		"FLUSHALL":          func(s *redistest.Server) { s.Command("FLUSHALL") },
		"restart":           func(s *redistest.Server) { s.Restart() },
	} {
		t.Run(name, func(t *testing.T) {
			server, w := redistest.Start(t), newFakeAtlas()
			r := newReplica(t, w, server.URL(), Config{}).connected()
			jwt := newJWT(orgA, "u", time.Time{})
			r.wantMiss(jwt)
			r.wantHit(jwt)
			lose(server)
			w.replace(orgA) // a delete whose moves are lost
			r.wantMiss(jwt)
			r.eventually("never remembered again", func() bool {
				_, status := r.token(jwt)
				return status.Hit
			})
			r.wantHit(jwt)
		})
	}
}

// A create is in flight when the fence goes: it has nothing to fill under.
func TestFault58FenceLostDuringACall(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{}).connected()
	jwt := newJWT(orgA, "u", time.Time{})
	_, err := r.Create(t.Context(), own(jwt), false, func(ctx context.Context) (Answer, error) {
		answer, err := w.ask(jwt)(ctx)
		w.replace(orgA)
		server.Command("FLUSHALL")
		return answer, err
	})
	if err != nil {
		t.Fatal(err)
	}
	r.wantMiss(jwt)
	r.wantHit(jwt)
}

func TestFault58FenceEvicted(t *testing.T) {
	server, w := redistest.Start(t, "--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru", "--maxmemory-samples", "64"), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{}).connected()
	jwt := newJWT(orgA, "u", time.Time{})
	r.wantMiss(jwt)
	server.Command("COPY", tokenKey(own(jwt)), "kept")
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
	server.Command("COPY", "kept", tokenKey(own(jwt)), "REPLACE")
	if token, status := r.token(jwt); token != w.token(orgA) || status.Hit {
		t.Errorf("got %q, %s", string(token), status)
	}
}

// Redis takes no writes any more: everything goes to Atlas, and deletes wait for what is there to expire.
func TestFault58RedisFull(t *testing.T) {
	t.Parallel()
	const ttl = 2 * time.Second
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{TTL: ttl}).connected()
	jwt := newJWT(orgA, "u", time.Time{})
	r.wantMiss(jwt)
	start := time.Now()
	server.Command("CONFIG", "SET", "maxmemory", "1")
	r.delete(jwt)
	if took := time.Since(start); took < ttl {
		t.Errorf("acknowledged after %v, while copies live for %v", took, ttl)
	}
	r.wantMiss(jwt)
}

func TestFault59WritesLostDuringADelete(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	one := newReplica(t, w, server.URL(), Config{}).connected()
	two := newReplica(t, w, server.URL(), Config{}).connected()
	jwt := newJWT(orgA, "u", time.Time{})
	two.wantMiss(jwt)
	err := one.Delete(t.Context(), own(jwt), func(ctx context.Context) (atlas.JWT, error) {
		server.Command("FLUSHALL") // the first move is lost
		two.wantMiss(jwt)
		two.wantHit(jwt) // not deleted yet
		return w.send(jwt)(ctx)
	})
	if err != nil {
		t.Fatal(err)
	}
	two.wantMiss(jwt)
}

// Redis goes back to an older state of everything: that cannot be told, and lasts no longer than the TTL.
func TestFault59OlderStateRestored(t *testing.T) {
	t.Parallel()
	const ttl = 2 * time.Second
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{TTL: ttl}).connected()
	jwt := newJWT(orgA, "u", time.Time{})
	start := time.Now()
	r.wantMiss(jwt)
	old := w.token(orgA)
	keys := []string{keyAll, orgKey(orgA), tokenKey(own(jwt))}
	for _, key := range keys {
		server.Command("COPY", key, "old "+key)
		server.Command("PERSIST", "old "+key)
	}
	r.delete(jwt)
	r.wantMiss(jwt)
	for _, key := range keys {
		server.Command("COPY", "old "+key, key, "REPLACE")
	}
	if token, _ := r.token(jwt); token != old && time.Since(start) < ttl {
		t.Errorf("got %q: the older state is not there, so this test tests nothing", string(token))
	}
	r.eventually("the older state lives on", func() bool {
		token, _ := r.token(jwt)
		return token == w.token(orgA)
	})
	if took := time.Since(start); took > ttl+maxWait {
		t.Errorf("the deleted token was handed out for %v, want at most %v", took, ttl)
	}
	if r.counted("tokend_cache_rejected_total", "expired") == 0 {
		t.Error("a value that was there too long was not counted")
	}
}

func TestFault60AlteredAndReplayedValues(t *testing.T) {
	jwt, other := newJWT(orgA, "u", time.Time{}), newJWT(orgA, "other", time.Time{})
	name, otherName := tokenKey(own(jwt)), tokenKey(own(other))
	for what, tc := range map[string]struct {
		tamper func(*replica, *redistest.Server)
		reason string
	}{
		"version":   {func(_ *replica, s *redistest.Server) { s.Command("SETRANGE", name, "0", "x") }, "seal"},
		"expiry":    {func(_ *replica, s *redistest.Server) { s.Command("SETRANGE", name, "17", "x") }, "seal"},
		"epoch":     {func(_ *replica, s *redistest.Server) { s.Command("SETRANGE", name, "70", "x") }, "seal"},
		"token":     {func(_ *replica, s *redistest.Server) { s.Command("SETRANGE", name, "105", "xyz") }, "seal"},
		"cut":       {func(_ *replica, s *redistest.Server) { s.Command("SET", name, "short") }, "seal"},
		"empty":     {func(_ *replica, s *redistest.Server) { s.Command("SET", name, "") }, "seal"},
		"longer":    {func(_ *replica, s *redistest.Server) { s.Command("APPEND", name, "x") }, "seal"},
		"another's": {func(_ *replica, s *redistest.Server) { s.Command("COPY", otherName, name, "REPLACE") }, "seal"},
		"replayed": {func(r *replica, s *redistest.Server) {
			s.Command("COPY", name, "old")
			s.Command("PERSIST", "old")
			r.delete(jwt)
			s.Command("COPY", "old", name, "REPLACE")
		}, "fence"},
	} {
		t.Run(what, func(t *testing.T) {
			server, w := redistest.Start(t), newFakeAtlas()
			r := newReplica(t, w, server.URL(), Config{}).connected()
			r.wantMiss(jwt)
			r.wantMiss(other)
			tc.tamper(r, server)
			r.wantMiss(jwt)
			for _, reason := range []string{"seal", "fence", "expired"} {
				want := 0.0
				if reason == tc.reason {
					want = 1
				}
				if got := r.counted("tokend_cache_rejected_total", reason); got != want {
					t.Errorf("%s: %v, want %v", reason, got, want)
				}
			}
			r.wantHit(jwt)
		})
	}
}

// A value of another type under our names is an error like any other.
func TestFault60WrongTypes(t *testing.T) {
	jwt := newJWT(orgA, "u", time.Time{})
	for _, key := range []string{keyAll, orgKey(orgA), tokenKey(own(jwt))} {
		server, w := redistest.Start(t), newFakeAtlas()
		r := newReplica(t, w, server.URL(), Config{}).connected()
		r.wantMiss(jwt)
		server.Command("DEL", key)
		server.Command("LPUSH", key, "x")
		r.wantMiss(jwt)
		if r.Check() == nil {
			t.Errorf("%s: Check has nothing to say", key)
		}
	}
}

// An attacker who writes to fences makes misses, or a hold, and nothing worse.
func TestFault60AlteredFences(t *testing.T) {
	jwt := newJWT(orgA, "u", time.Time{})
	for what, words := range map[string][]string{
		"epoch":       {"HSET", orgKey(orgA), "epoch", strings.Repeat("z", epochLen)},
		"short epoch": {"HSET", orgKey(orgA), "epoch", "z"},
		"held":        {"HSET", orgKey(orgA), "hold:x", "9999999999999"},
		"bad hold":    {"HSET", orgKey(orgA), "hold:x", "soon"},
	} {
		t.Run(what, func(t *testing.T) {
			server, w := redistest.Start(t), newFakeAtlas()
			r := newReplica(t, w, server.URL(), Config{}).connected()
			r.wantMiss(jwt)
			server.Command(words...)
			w.replace(orgA)
			r.wantMiss(jwt)
		})
	}
}

func TestRedisHoldsNoSecret(t *testing.T) {
	server, w := redistest.Start(t), newFakeAtlas()
	r := newReplica(t, w, server.URL(), Config{}).connected()
	jwt, other := newJWT(orgA, "planted-user", time.Time{}), newJWT(orgB, "planted-user", time.Time{})
	const userAuthToken = "planted-userauthtoken"
	secrets := []string{string(jwt), string(other), userAuthToken, orgA, orgB, string(w.token(orgA)), string(w.token(orgB)), "planted-user"}
	r.wantMiss(jwt)
	r.wantMiss(other)
	if _, err := r.Create(t.Context(), profile(userAuthToken, jwt), false, w.ask(jwt)); err != nil {
		t.Fatal(err)
	}
	r.delete(other)
	r.wantMiss(other)
	secrets = append(secrets, string(w.token(orgB)))
	r.caching.store.deletion(orgA).begin(t.Context())
	r.deleteAnd(jwt, statusError(atlas.OpDelete, 504))

	var dump strings.Builder
	keys := strings.Split(server.Command("KEYS", "*"), "\n")
	for _, key := range keys {
		command := "GET"
		if server.Command("TYPE", key) == "hash" {
			command = "HGETALL"
		}
		dump.WriteString(key + "\n" + server.Command(command, key) + "\n")
	}
	if len(keys) < 7 {
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
