package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/listen"
	"github.com/ForstaLabs/ephemeral-token-service/internal/setup"
	"github.com/ForstaLabs/ephemeral-token-service/internal/spiffe"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redis"
)

// agentChecks ask the SPIFFE agent for what serve would get from it.
func agentChecks(s *setup.Setup) []check {
	addr := s.Settings.SPIFFESocket
	if addr == "" {
		return nil
	}
	return []check{{"spiffe SVID", []string{"--spiffe-socket"}, func(ctx context.Context) Finding {
		own, err := spiffe.Fetch(ctx, addr)
		if err != nil {
			return bad(err.Error(), setup.AgentRemedy(err))
		}
		return svidFinding(own, time.Now())
	}}}
}

func svidFinding(own *spiffe.SVID, now time.Time) Finding {
	leaf, domain := own.Certificate.Leaf, own.ID.TrustDomain()
	if f := expiryFinding(leaf, now); f.Status != Passed {
		f.Detail = fmt.Sprintf("%s: %s", own.ID, f.Detail)
		f.Remedy = "Check the agent's log and this machine's clock: the agent renews an SVID long before that."
		return f
	}
	if f := authoritiesFinding(forCallers, own.Bundle.X509Authorities(), now); f.Status == Failed {
		return bad(fmt.Sprintf("the bundle of %s: %s", domain, f.Detail), "Check the agent's log, and whether it reaches its server.")
	}
	return good("%s, valid until %s; authorities of %s: %d", own.ID, utc(leaf.NotAfter), domain, len(own.Bundle.X509Authorities()))
}

// listenChecks bind each address, and close it again.
func listenChecks(s *setup.Setup) []check {
	set := &s.Settings
	var checks []check
	for _, l := range []struct{ name, addr string }{{"grpc", set.GRPCAddr}, {"http", set.HTTPAddr}, {"admin", set.AdminAddr}} {
		if l.addr != "" {
			setting := "--" + l.name + "-addr"
			checks = append(checks, check{"port " + l.name, []string{setting}, func(ctx context.Context) Finding {
				return portFinding(ctx, s, setting, l.addr)
			}})
		}
	}
	return checks
}

func portFinding(ctx context.Context, s *setup.Setup, setting, addr string) Finding {
	bound, err := listen.On(addr, listen.Limits{})
	if err == nil {
		err = bound.Share(s.Config.GRPCSocketMode)
		_ = bound.Close()
	}
	switch {
	case err == nil:
		return good("%s is free", addr)
	case errors.Is(err, listen.ErrInUse) && AskHealth(ctx, s.Settings.AdminAddr) == nil:
		return doubtful(addr+" is in use, and a tokend is alive on this machine", "If that is the one with these settings, all is well; otherwise choose another address in "+setting+".")
	case errors.Is(err, listen.ErrInUse):
		return bad(addr+" is in use", "Stop the process that holds it, or choose another address in "+setting+".")
	}
	return bad(fmt.Sprintf("cannot listen on %s: %v", addr, err), "Choose an address of this machine, and a port or directory that this user may use, in "+setting+".")
}

// AskHealth returns nil if a tokend with that admin address says that it is alive. Package net
// connects to this machine if the host is empty or unspecified, as in 0.0.0.0:9091.
func AskHealth(ctx context.Context, adminAddr string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+adminAddr+"/healthz", nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // and no proxy
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("not healthy: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("not healthy: /healthz answers %s", resp.Status)
	}
	return nil
}

const redisLogin = "redis login"

// redisCheck is a connection to Redis from its first check to the last.
type redisCheck struct {
	config redis.Config
	probe  *redis.Probe
}

// redisChecks connect and log in, then run a script. The two share a probe, which the second one
// closes.
func redisChecks(s *setup.Setup) []check {
	if s.Config.Cache.Redis == nil {
		return nil
	}
	settings := []string{"--cache-redis-url", "--cache-redis-ca-file", "--cache-redis-password-file"}
	r := &redisCheck{config: *s.Config.Cache.Redis}
	return []check{
		{redisLogin, settings, r.login},
		{"redis scripts", append(settings, redisLogin), r.scripts},
	}
}

func (r *redisCheck) login(ctx context.Context) Finding {
	probe, err := redis.NewProbe(context.WithoutCancel(ctx), r.config)
	if err != nil {
		return bad(err.Error(), "Correct --cache-redis-url.")
	}
	if err := probe.Connect(); err != nil {
		probe.Close()
		return bad(fmt.Sprintf("%s: %v", probe.Addrs(), err), redisRemedy(err))
	}
	r.probe = probe
	return good("connected through %s, and accepted", probe.Addrs())
}

func (r *redisCheck) scripts(context.Context) Finding {
	defer r.probe.Close()
	fastest, err := r.probe.Run()
	switch {
	case err != nil:
		return bad(err.Error(), redisRemedy(err))
	case fastest > r.probe.Budget():
		return doubtful(fmt.Sprintf("a script takes at least %v, but calls wait only %v", fastest.Round(time.Millisecond), r.probe.Budget()),
			"Move Redis closer, or give it more CPU: until then calls go to Atlas.")
	}
	return good("a script takes %v", fastest.Round(10*time.Microsecond))
}

// redisRemedies are the remedies of errors of a probe.
var redisRemedies = []struct {
	err    error
	remedy string
}{
	{redis.ReplyError("WRONGPASS"), "Put Redis's password into the file of --cache-redis-password-file; a user goes into the URL, as in redis://USER@HOST:6379."},
	{redis.ReplyError("NOAUTH"), "Set --cache-redis-password-file: this Redis requires a password."},
	{redis.ReplyError("NOPERM"), "Give the user's ACL the commands of the cache's scripts, +info among them, on keys that begin with {tokend} (see Redis in the operator's guide)."},
	{redis.ReplyError("READONLY"), "Set --cache-redis-url to the primary, or to the sentinels with ?master_set=NAME: this is a replica."},
	{redis.ReplyError("OOM"), "Give Redis more memory, or a maxmemory-policy that evicts."},
	{redis.ErrOld, "Use Redis 6 or later, or Valkey, and no proxy that does not know its commands."},
	{redis.ErrNoTLS, "Change the beginning of --cache-redis-url as it says."},
	{redis.ErrClosedConn, "Change the beginning of --cache-redis-url as it says."},
}

func redisRemedy(err error) string {
	for _, known := range redisRemedies {
		if errors.Is(err, known.err) {
			return known.remedy
		}
	}
	if isCertificateError(err) {
		return "Put the authority that signed Redis's certificate into --cache-redis-ca-file, and use a host that the certificate names."
	}
	if _, answered := errors.AsType[redis.ReplyError](err); answered {
		return "Check Redis's log and ACL LOG for what it refuses: the cache runs scripts, on keys that begin with {tokend}."
	}
	return "Start Redis, let firewalls pass this machine, or correct --cache-redis-url."
}
