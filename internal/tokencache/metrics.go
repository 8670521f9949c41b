package tokencache

import "github.com/prometheus/client_golang/prometheus"

// metrics are what an operator sees of sharing and caching.
type metrics struct {
	creates  *prometheus.CounterVec
	answered map[string]prometheus.Counter // those of creates
}

// How a create was answered.
const (
	answeredHit       = "hit"
	answeredStale     = "stale"
	answeredMiss      = "miss"
	answeredCollapsed = "collapsed"
)

// newMetrics registers with r, unless that is nil. waiting is how many callers wait at present.
func newMetrics(r prometheus.Registerer, waiting func() int64) (*metrics, error) {
	m := &metrics{
		answered: map[string]prometheus.Counter{},
		creates: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokend_cache_creates_total",
			Help: "CreateToken calls by how they were answered: hit, stale (kept for when Atlas fails), miss (a call to Atlas of their own, or the first of a shared one), collapsed (shared another's call). Failed calls count too.",
		}, []string{"answered"}),
	}
	for _, v := range []string{answeredHit, answeredStale, answeredMiss, answeredCollapsed} {
		m.answered[v] = m.creates.WithLabelValues(v)
	}
	if r == nil {
		return m, nil
	}
	inProgress := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tokend_cache_creates_waiting",
		Help: "CreateToken calls that wait for a call to Atlas, their own or a shared one.",
	}, func() float64 { return float64(waiting()) })
	for _, c := range []prometheus.Collector{m.creates, inProgress} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
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
