package tokencache

import (
	"errors"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// Status says how a create was answered. The zero Status is that of a miss.
type Status struct {
	Hit       bool          // from the cache
	Stale     bool          // of a hit: served beyond its TTL, because Atlas failed
	TTL       time.Duration // of a hit: how much longer it is fresh; negative if it is stale
	Age       time.Duration // of a hit: since Atlas was asked
	NoCache   bool          // for a miss: the caller did not want a cached token
	Collapsed bool          // another caller of the shared call came first
}

// String is the value of the Cache-Status header (RFC 9211).
func (s Status) String() string {
	text := "tokend; fwd=miss"
	switch {
	case s.Stale:
		return "tokend; hit; detail=stale"
	case s.Hit:
		return "tokend; hit; ttl=" + strconv.FormatInt(int64(s.TTL/time.Second), 10)
	case s.NoCache:
		text = "tokend; fwd=request"
	}
	if s.Collapsed {
		text += "; collapsed"
	}
	return text
}

// NotAsked returns why a create failed without a call to Atlas, "" if Atlas was called.
func NotAsked(err error) string {
	e, ok := errors.AsType[*atlas.Error](err)
	switch {
	case !ok:
		return ""
	case errors.Is(err, errHeldOff):
		return "throttled"
	case e.Kind == atlas.KindOverloaded, e.Kind == atlas.KindUnavailable:
		return string(e.Kind)
	}
	return ""
}

// AgeSeconds is the value of the Age header of a hit (RFC 9111 §5.1).
func (s Status) AgeSeconds() string { return strconv.FormatInt(int64(s.Age/time.Second), 10) }

// fresh reports whether a token is cached that any caller may have.
func (s Status) fresh() bool { return s.Hit && !s.Stale }

// answered is the value of the label of tokend_cache_creates_total.
func (s Status) answered() string {
	switch {
	case s.Stale:
		return "stale"
	case s.Hit:
		return "hit"
	case s.Collapsed:
		return "collapsed"
	}
	return "miss"
}

// newMetrics returns the counter of creates. waiting returns how many callers wait.
func newMetrics(r prometheus.Registerer, waiting func() int64) (creates *prometheus.CounterVec) {
	auto := promauto.With(r)
	creates = auto.NewCounterVec(prometheus.CounterOpts{
		Name: "tokend_cache_creates_total",
		Help: "CreateToken calls by how they were answered: hit, stale (kept for when Atlas fails), miss (a call to Atlas of their own, or the first of a shared one), collapsed (shared another's call). Failed calls count too.",
	}, []string{"answered"})
	for _, s := range []Status{{}, {Hit: true}, {Hit: true, Stale: true}, {Collapsed: true}} {
		creates.WithLabelValues(s.answered())
	}
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tokend_cache_creates_waiting",
		Help: "CreateToken calls that wait for a call to Atlas, their own or a shared one.",
	}, func() float64 { return float64(waiting()) })
	return creates
}
