package redis

import (
	"context"
	"strings"
	"time"
)

// Probe checks whether a Redis can be used as the cache.
type Probe struct{ client *client }

// NewProbe returns a Probe of a Redis. It connects to nothing yet. It must be closed. ctx
// cancels its operations.
func NewProbe(ctx context.Context, cfg Config) (*Probe, error) {
	c, err := newClient(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &Probe{c}, nil
}

// Connect connects and logs in, through the sentinels if there are some. The error is an Error, a
// ReplyError or a *net.OpError.
func (p *Probe) Connect() error {
	// Every user may send HELLO, whatever its permissions.
	ctx, cancel := context.WithTimeout(p.client.ctx, timeout)
	defer cancel()
	pipeline := p.client.server().Pipeline()
	pipeline.Do(ctx, "HELLO")
	if _, err := pipeline.Exec(ctx); err != nil {
		return cause(err)
	}
	return nil
}

// probeRuns is how often a script is run, so that a machine that is busy for a moment does not look
// like a slow Redis.
const probeRuns = 5

// Run runs the cache's scripts on keys that expire, and returns how long the fastest read took.
// Connect must have succeeded. Without the permission for a command, the error is
// ReplyError("NOPERM").
func (p *Probe) Run() (fastest time.Duration, err error) {
	name := newEpoch()
	all, org, value := keyOrgPrefix+"probe-all-"+name, keyOrgPrefix+"probe-"+name, keyTokenPrefix+"probe-"+name
	const second = "1000"
	fastest = timeout
	for range probeRuns {
		began := time.Now()
		if _, err := p.client.run(timeout, scriptRead, []string{all, org, value}, []any{newEpoch(), second}); err != nil {
			p.client.follow(err)
			return 0, cause(err)
		}
		fastest = min(fastest, time.Since(began))
	}
	if _, err := p.client.run(timeout, scriptHold, []string{org}, []any{newEpoch(), "hold:probe", second, second}); err != nil {
		return 0, cause(err)
	}
	if _, err := p.client.run(timeout, scriptDrop, []string{org}, nil); err != nil {
		return 0, cause(err)
	}
	return fastest, nil
}

// Budget is how long a call waits for Redis before it goes on without it.
func (p *Probe) Budget() time.Duration { return p.client.budget }

// Addrs are the addresses of Redis, or of its sentinels.
func (p *Probe) Addrs() string {
	o, _ := options(p.client.cfg) // checked by NewProbe
	return strings.Join(o.Addrs, ", ")
}

// Close ends the Probe's connections.
func (p *Probe) Close() { p.client.close() }
