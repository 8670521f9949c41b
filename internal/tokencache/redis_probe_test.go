package tokencache

import (
	"strings"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
)

// A probe finds out what a cache would, and leaves nothing behind.
func TestRedisProbe(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	open := func(c RedisConfig) *RedisProbe {
		t.Helper()
		c.URL = strings.Replace(c.URL, "HOST", server.Addr(), 1)
		p, err := c.Probe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		return p
	}
	server.Command("ACL", "SETUSER", "reader", "on", ">planted-password", "allkeys", "+@connection")
	planted := func() string { return "planted-password" }
	for name, tc := range map[string]struct {
		config       RedisConfig
		connect, run string // the error, or none
	}{
		"fine":                   {RedisConfig{URL: "redis://HOST"}, "", ""},
		"a user who may nothing": {RedisConfig{URL: "redis://reader@HOST", Password: planted}, "", "it answers NOPERM"},
		"no such user":           {RedisConfig{URL: "redis://nobody@HOST", Password: planted}, "it answers WRONGPASS", ""},
		"TLS":                    {RedisConfig{URL: "rediss://HOST"}, string(errNoTLS), ""},
		"nobody there":           {RedisConfig{URL: "redis://127.0.0.1:1"}, "connection refused", ""},
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
	if keys := server.Command("KEYS", "*"); keys != "" {
		t.Errorf("it left %s", keys)
	}
	if _, err := (&RedisConfig{URL: "redis://user:planted-password@h:1"}).Probe(t.Context()); err == nil || strings.Contains(err.Error(), "planted") {
		t.Errorf("a password in the URL: %v", err)
	}
}
