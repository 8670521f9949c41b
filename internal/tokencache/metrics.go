package tokencache

import "github.com/prometheus/client_golang/prometheus"

// metrics are what an operator sees of sharing and caching.
type metrics struct {
	creates  *prometheus.CounterVec
	answered map[string]prometheus.Counter // those of creates
	rejected *prometheus.CounterVec
	redis    *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

// How a create was answered.
const (
	answeredHit       = "hit"
	answeredStale     = "stale"
	answeredMiss      = "miss"
	answeredCollapsed = "collapsed"
)

// Why a value in Redis was not used.
const (
	rejectedMoved   = "fence"   // it belongs to another state of the fence: deleted since, or replayed
	rejectedExpired = "expired" // it is there longer than it may be: replayed
	rejectedSeal    = "seal"    // it does not open: altered, or stored under another credential's key
)

// newMetrics registers with r, unless that is nil. waiting is how many callers wait at present.
func newMetrics(r prometheus.Registerer, waiting func() int64) (*metrics, error) {
	m := &metrics{
		answered: map[string]prometheus.Counter{},
		creates: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokend_cache_creates_total",
			Help: "CreateToken calls by how they were answered: hit, stale (kept for when Atlas fails), miss (a call to Atlas of their own, or the first of a shared one), collapsed (shared another's call). Failed calls count too.",
		}, []string{"answered"}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokend_cache_rejected_total",
			Help: "Values in Redis that were not used: fence (from before a delete; now and then is normal), expired or seal (altered or replayed; never normal).",
		}, []string{"reason"}),
		redis: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokend_cache_redis_operations_total",
			Help: "Operations on Redis, by outcome: ok, failed (an error, or no answer in time), skipped (Redis has failed too often just before).",
		}, []string{"operation", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tokend_cache_redis_operation_duration_seconds", Help: "How long operations on Redis took, those that failed included.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .5, 1},
		}, []string{"operation"}),
	}
	for _, v := range []string{answeredHit, answeredStale, answeredMiss, answeredCollapsed} {
		m.answered[v] = m.creates.WithLabelValues(v)
	}
	for _, v := range []string{rejectedMoved, rejectedExpired, rejectedSeal} {
		m.rejected.WithLabelValues(v)
	}
	if r == nil {
		return m, nil
	}
	inProgress := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tokend_cache_creates_waiting",
		Help: "CreateToken calls that wait for a call to Atlas, their own or a shared one.",
	}, func() float64 { return float64(waiting()) })
	for _, c := range []prometheus.Collector{m.creates, m.rejected, m.redis, m.seconds, inProgress} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// registerUp shows what check says of Redis.
func registerUp(r prometheus.Registerer, check func() error) error {
	if r == nil {
		return nil
	}
	return r.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tokend_cache_redis_up", Help: "1 if Redis answers; 0 if it fails now and then, or is not reached.",
	}, func() float64 {
		if check() != nil {
			return 0
		}
		return 1
	}))
}

func (m *metrics) created(s Status) {
	answered := answeredMiss
	switch {
	case s.Stale:
		answered = answeredStale
	case s.Hit:
		answered = answeredHit
	case s.Collapsed:
		answered = answeredCollapsed
	}
	m.answered[answered].Inc()
}
