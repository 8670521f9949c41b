package redis

import (
	"strings"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
)

// TestRedisProbe finds what a cache would find, and leaves no keys behind.
func TestRedisProbe(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	open := func(c Config) *Probe {
		t.Helper()
		c.URL = strings.Replace(c.URL, "HOST", server.Addr(), 1)
		p, err := NewProbe(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		return p
	}
	server.Command("ACL", "SETUSER", "reader", "on", ">planted-password", "allkeys", "+@connection")
	server.Command(strings.Fields("ACL SETUSER old on >planted-password ~{tokend}:* +eval +evalsha +time +pttl +pexpire +hgetall +hget +hmget +hset +hdel +get +set +del")...)
	planted := func() string { return "planted-password" }
	for name, tc := range map[string]struct {
		config       Config
		connect, run string // the error, or none
	}{
		"fine":                    {Config{URL: "redis://HOST"}, "", ""},
		"a user without commands": {Config{URL: "redis://reader@HOST", Password: planted}, "", "it replied NOPERM"},
		"no such user":            {Config{URL: "redis://unknown@HOST", Password: planted}, "it replied WRONGPASS", ""},
		"a user without +info":    {Config{URL: "redis://old@HOST", Password: planted}, "", "it replied NOPERM"},
		"no server":               {Config{URL: "redis://127.0.0.1:1"}, "connection refused", ""},
	} {
		p := open(tc.config)
		err := p.Connect()
		if tc.connect != "" {
			if err == nil || !strings.Contains(err.Error(), tc.connect) {
				t.Errorf("%s: connect: %v, want %s", name, err, tc.connect)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: connect: %v", name, err)
			continue
		}
		took, err := p.Run()
		switch {
		case tc.run == "" && (err != nil || took <= 0):
			t.Errorf("%s: run: %v, %v", name, took, err)
		case tc.run != "" && (err == nil || err.Error() != tc.run):
			t.Errorf("%s: run: %v, want %s", name, err, tc.run)
		}
	}
	if n := server.Command("EVAL", "local n = 0 for _, k in ipairs(redis.call('KEYS', '*')) do if redis.call('PTTL', k) < 0 then n = n + 1 end end return n", "0"); n != "0" {
		t.Errorf("it left %s keys that do not expire", n)
	}
	if _, err := NewProbe(t.Context(), Config{URL: "redis://user:planted-password@h:1"}); err == nil || strings.Contains(err.Error(), "planted") {
		t.Errorf("a password in the URL: %v", err)
	}
}
