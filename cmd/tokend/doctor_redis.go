package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redis"
)

const checkRedisLogin = "redis login"

// redisCheck is a connection to Redis from its first check to the last.
type redisCheck struct {
	config redis.Config
	probe  *redis.Probe
}

// redisChecks connect and log in, then have a script carried out. The context of a probe is that of all of them, so the second
// check ends it.
func (c *doctorCommand) redisChecks(s *setup) []check {
	if s.Cache.Redis == nil {
		return nil
	}
	settings := []string{"--cache-redis-url", "--cache-redis-ca-file", "--cache-redis-password-file"}
	r := &redisCheck{config: *s.Cache.Redis}
	return []check{
		{checkRedisLogin, settings, r.findLogin},
		{"redis scripts", append(settings, checkRedisLogin), r.findScripts},
	}
}

func (r *redisCheck) findLogin(ctx context.Context) finding {
	probe, err := redis.NewProbe(context.WithoutCancel(ctx), r.config)
	if err != nil {
		return bad(err.Error(), "Correct --cache-redis-url.")
	}
	if err := probe.Connect(); err != nil {
		probe.Close()
		return bad(fmt.Sprintf("%s: %v", probe.Addrs(), err), redisRemedy(err.Error()))
	}
	r.probe = probe
	return good("connected by way of %s, and let in", probe.Addrs())
}

func (r *redisCheck) findScripts(context.Context) finding {
	defer r.probe.Close()
	fastest, err := r.probe.Run()
	switch {
	case err != nil:
		return bad(err.Error(), redisRemedy(err.Error()))
	case fastest > r.probe.Budget():
		return doubtful(fmt.Sprintf("a script takes %v at least, and calls wait for %v only", fastest.Round(time.Millisecond), r.probe.Budget()),
			"Have Redis nearer, or give it more of a machine: calls go straight to Atlas, as if there were none.")
	}
	return good("a script takes %v", fastest.Round(10*time.Microsecond))
}

// redisRemedies are by a word of the cause; the last fits all.
var redisRemedies = []struct{ word, remedy string }{
	{"WRONGPASS", "Put Redis's password into the file of --cache-redis-password-file; a user goes into the URL, as in redis://USER@HOST:6379."},
	{"NOAUTH", "Give --cache-redis-password-file: this Redis wants a password."},
	{"NOPERM", "Give the user's ACL the commands of the cache's scripts, +info among them, on keys that begin with {tokend} (see Redis in the operator's guide)."},
	{"READONLY", "Have --cache-redis-url name the primary, or the sentinels with ?master_set=NAME: this is a replica."},
	{"OOM", "Give Redis more memory, or a maxmemory-policy that evicts."},
	{"older", "Use Redis 6 or later, or Valkey, and no proxy that does not know its commands."},
	{"speaks", "Change the beginning of --cache-redis-url as it says."},
	{"x509", "Put the authority that signed Redis's certificate into --cache-redis-ca-file, and use a host that the certificate names."},
	{"it answers", "Look into Redis's log and ACL LOG for what it refuses: the cache runs scripts, on keys that begin with {tokend}."},
	{"", "Start Redis, have firewalls let this machine through, or correct --cache-redis-url."},
}

func redisRemedy(cause string) string {
	for _, r := range redisRemedies {
		if strings.Contains(cause, r.word) {
			return r.remedy
		}
	}
	return ""
}
