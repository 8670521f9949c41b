package server

import (
	"cmp"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/ForstaLabs/ephemeral-token-service/internal/listen"
	"github.com/ForstaLabs/ephemeral-token-service/internal/lograte"
)

// Shares of the process's file descriptors. Callers' connections are bounded, so that probes are
// still answered and Atlas can be reached while those are refused.
const (
	// mostConns bounds the connections of each of the two listeners for callers.
	mostConns = 10_000
	// mostAdminConns bounds the connections of probes, scrapers and operators.
	mostAdminConns = 64
	// ownDescriptors are reserved for Atlas, Redis, OIDC issuers and files.
	ownDescriptors = 256
)

// Shares of the process's memory: a third for idle connections, and a third for requests that wait
// for their clients.
const (
	connBytes    = 40 << 10 // measured: an idle connection with TLS takes 34 to 42 KiB
	requestBytes = 20 << 10 // measured: a request over REST whose answer is not read
	// mostRequests is how many requests may wait if memory is unlimited.
	mostRequests = 2048
)

// memory returns how much memory the process may use: GOMEMLIMIT, or the container's limit.
func (c *Config) memory() int64 { return cmp.Or(c.memoryLimit, debug.SetMemoryLimit(-1)) }

// maxRequests returns how many requests may wait for their clients.
func (c *Config) maxRequests() int { return int(max(min(c.memory()/3/requestBytes, mostRequests), 64)) }

func (c *Config) maxDescriptors() int { return cmp.Or(c.descriptors, listen.Descriptors()) }

// adminConns returns how many connections the admin listener may have open.
func (c *Config) adminConns() int { return max(min(mostAdminConns, c.maxDescriptors()/16), 4) }

// connsThatFit returns how many connections the descriptors allow on each listener for callers.
func (c *Config) connsThatFit() int {
	all := c.maxDescriptors()
	rest := all - min(ownDescriptors, all/2) - c.adminConns()
	if c.GRPCAddr != "" && c.HTTPAddr != "" {
		rest /= 2
	}
	return max(rest, 4)
}

// defaultConns returns how many connections each listener for callers may have open by default.
func (c *Config) defaultConns() int {
	inMemory := c.memory() / 3 / connBytes
	if c.GRPCAddr != "" && c.HTTPAddr != "" {
		inMemory /= 2
	}
	return int(min(mostConns, int64(c.connsThatFit()), max(inMemory, 16)))
}

func (c *Config) validateMaxConns() error {
	if most := c.connsThatFit(); c.MaxConns > most {
		return fmt.Errorf("%d connections on each listener are more than the process's %d descriptors allow for: at most %d, or raise the limit (LimitNOFILE, ulimit -n)",
			c.MaxConns, c.maxDescriptors(), most)
	}
	return nil
}

// adminListener is the name of the listener for operators and probes.
const adminListener = "admin"

// connectionLimits returns a function that makes the limits of a listener by its name. Refused
// connections are counted, and logged at a limited rate.
func connectionLimits(cfg Config, requests *listen.Requests) func(listener string) listen.Limits {
	refused := promauto.With(cfg.Metrics).NewCounterVec(prometheus.CounterOpts{
		Name: "tokend_connections_refused_total",
		Help: "Connections closed because too many connections or requests were open, on the listener or of one peer.",
	}, []string{"listener", "limit"})
	log := lograte.Kind(cfg.Logger, lograte.Connection)
	return func(listener string) listen.Limits {
		l := listen.Limits{Total: cfg.MaxConns, PerPeer: max(cfg.MaxConns/2, 1), Requests: requests}
		if listener == adminListener {
			l = listen.Limits{Total: cfg.adminConns(), PerPeer: max(cfg.adminConns()/2, 1), Local: true, EvictSilent: true}
		} else {
			refused.WithLabelValues(listener, listen.RequestsLimit)
		}
		refused.WithLabelValues(listener, listen.TotalLimit)
		refused.WithLabelValues(listener, listen.PerPeerLimit)
		l.Refused = func(limit string, peer net.Addr) {
			refused.WithLabelValues(listener, limit).Inc()
			log.Warn("connection closed: a limit is reached",
				slog.String("listener", listener), slog.String("limit", limit), slog.String("peer", peer.String()))
		}
		return l
	}
}

// registerConnections registers gauges of a listener's open connections and of their limit.
func registerConnections(registry *prometheus.Registry, listener string, l *listen.Listener, most int) {
	gauge := func(name, help string, value func() float64) {
		promauto.With(registry).NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: prometheus.Labels{"listener": listener}}, value)
	}
	gauge("tokend_connections_open", "Connections that are open.", func() float64 { return float64(l.Open()) })
	gauge("tokend_connections_open_limit", "How many connections may be open.", func() float64 { return float64(most) })
}
