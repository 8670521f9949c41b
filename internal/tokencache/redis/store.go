// Package redis caches tokens in Redis or Valkey, for all replicas of the service.
//
// Each token is guarded by the fence of its org, which a delete moves (scripts.go), and sealed with
// a key that is derived from its credential (seal.go). Fence and value are read in one round trip.
// Nothing is cached in this process as well: a copy could be read after its fence has moved.
//
// A create that cannot reach Redis goes to Atlas. A delete that cannot move the fence is not
// acknowledged before every copy must have expired; until then it goes on trying (deletion.go).
package redis

import (
	"context"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Options say for how long a Store caches tokens.
type Options struct {
	// TTL is how long a token is fresh, and Stale how much longer it is kept.
	TTL, Stale time.Duration
	// CallTimeout is how long a call to Atlas takes at most.
	CallTimeout time.Duration
	// SettleTime is how long after a delete of unknown outcome nothing is cached for its org.
	SettleTime time.Duration
	// Registerer gets the metrics. If nil, there are none.
	Registerer prometheus.Registerer
	// Logger gets a line when Redis fails, and one when it answers again. If nil, there are none.
	Logger *slog.Logger
}

// Store is a cache in Redis.
type Store struct {
	client  *client
	metrics *metrics
	options Options

	lateMoves, lateDrops chan struct{} // a slot for each that is retried
}

// New returns a Store. It does not wait for Redis.
func New(cfg Config, o Options) (*Store, error) {
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, err
	}
	c, err := newClient(context.Background(), cfg)
	if err != nil {
		return nil, err
	}
	if c.metrics, c.health.log = m, o.Logger; o.Logger == nil {
		c.health.log = slog.New(slog.DiscardHandler)
	}
	c.start()
	s := &Store{
		client: c, metrics: m, options: o,
		lateMoves: make(chan struct{}, maxLateMoves), lateDrops: make(chan struct{}, maxLateDrops),
	}
	if err := registerUp(o.Registerer, s.Check); err != nil {
		c.close()
		return nil, err
	}
	return s, nil
}

// Check returns why Redis cannot be used, or nil.
func (s *Store) Check() error { return s.client.check() }

// Close ends the background work. The Store must not be used any more.
func (s *Store) Close() { s.client.close() }

// Item is what a token is cached under: its org and its credential.
type Item struct {
	orgKey, tokenKey string
	aead             cipher.AEAD
}

// NewItem returns the Item for an org, which may not be "". Name and key are secret and belong to
// the credential; they are the same in all replicas. The key has 32 bytes.
func NewItem(org string, name, key []byte) *Item {
	return &Item{orgKey(org), keyTokenPrefix + hex.EncodeToString(name), newAEAD(key)}
}

// orgKey returns the key of an org's fence, which does not reveal the org. "" is every org.
func orgKey(org string) string {
	if org == "" {
		return keyAll
	}
	sum := sha256.Sum256([]byte("org\x00" + org))
	return keyOrgPrefix + hex.EncodeToString(sum[:16])
}

// View has the epochs of the fences, and when they were read. The zero View is of a Redis that has
// not answered.
type View struct {
	at       time.Time
	now      int64 // ms, Redis's clock
	all, org epoch
}

// Found is a cached token, or none if Token is "".
type Found struct {
	Token string
	Age   time.Duration // since Atlas was asked
	TTL   time.Duration // left; zero or less: stale
}

// Get returns the token that is cached for an item, and the View for Put.
func (s *Store) Get(ctx context.Context, item *Item) (Found, View) {
	answer, err := s.client.read(ctx, []string{keyAll, item.orgKey, item.tokenKey},
		newEpoch(), milliseconds(s.keepFences()))
	if err != nil {
		return Found{}, View{}
	}
	at := time.Now() // after Redis read its clock, so that values expire early rather than late
	v, value, held, err := parseRead(answer)
	if err != nil {
		s.client.health.report(at, err)
		return Found{}, View{}
	}
	v.at = at
	if held {
		v.org = "" // which no fence has, so nothing is stored
	}
	if value == nil {
		return Found{}, v
	}
	token, header, err := open(value, item.aead, item.tokenKey, v.now, v.all, v.org)
	if err != nil {
		s.metrics.reject(err)
		return Found{}, v
	}
	f := Found{token, sinceThen(header.since, v.now), sinceThen(v.now, header.fresh)}
	if f.Age >= s.options.TTL+s.options.Stale { // it was stored under a longer TTL than ours
		return Found{}, v
	}
	f.TTL = min(f.TTL, s.options.TTL-f.Age)
	return f, v
}

func sinceThen(then, now int64) time.Duration { return time.Duration(now-then) * time.Millisecond }

// parseRead parses the answer of scriptRead.
func parseRead(answer any) (v View, value []byte, held bool, err error) {
	fields, _ := answer.([]any)
	if len(fields) != 5 {
		return v, nil, false, errMalformed
	}
	now, ok1 := fields[0].(int64)
	all, ok2 := fields[1].(string)
	org, ok3 := fields[2].(string)
	isHeld, ok4 := fields[3].(int64)
	stored, there := fields[4].(string)
	ok5 := there || fields[4] == nil
	if !(ok1 && ok2 && ok3 && ok4 && ok5) || len(all) != epochLen || len(org) != epochLen {
		return v, nil, false, errMalformed
	}
	if there {
		value = []byte(stored)
	}
	return View{now: now, all: epoch(all), org: epoch(org)}, value, isHeld != 0, nil
}

// Put caches Atlas's answer to a call that began after the View was taken, for at most life.
func (s *Store) Put(ctx context.Context, v View, item *Item, token string, life time.Duration) {
	if v.now == 0 {
		return // Redis did not answer
	}
	since := v.now
	end := since + (time.Since(v.at) + min(life, 1000*time.Hour)).Milliseconds()
	header := sealed{
		since: since, fresh: min(since+s.options.TTL.Milliseconds(), end),
		until: min(since+(s.options.TTL+s.options.Stale).Milliseconds(), end),
		all:   v.all, org: v.org,
	}
	_, _ = s.client.do(ctx, "put", usual, scriptPut, []string{keyAll, item.orgKey, item.tokenKey},
		string(header.all), string(header.org), note(v.all, item, token), string(header.seal(item.aead, item.tokenKey, token)),
		strconv.FormatInt(header.until, 10), newEpoch(), milliseconds(s.keepFences()),
	) // if it fails, nothing is cached, and the client has reported it
}

// note returns a hash of a token, by which replicas compare their tokens. Its key is the epoch of
// every org's fence, so it cannot be compared once that fence has moved.
func note(all epoch, item *Item, token string) string {
	mac := hmac.New(sha256.New, []byte(all))
	mac.Write([]byte(item.orgKey + "\x00" + token))
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

// Drop removes the token that is cached for an item.
func (s *Store) Drop(ctx context.Context, item *Item) {
	drop := func(ctx context.Context, how effort) error {
		_, err := s.client.do(ctx, "drop", how, scriptDrop, []string{item.tokenKey})
		return err
	}
	if drop(ctx, usual) != nil {
		s.client.retry(s.lateDrops, s.lifetime(), func() error { return drop(context.Background(), patient) })
	}
}

// lifetime is the time after which all copies that are in Redis now must have expired. It has a
// margin of one percent and a bit, because clocks run at different speeds.
func (s *Store) lifetime() time.Duration {
	last := s.options.TTL + s.options.Stale
	return last + last/100 + 100*time.Millisecond
}

// keepFences is longer than any call takes. Fences live at least as long as the values behind them.
func (s *Store) keepFences() time.Duration {
	return s.options.CallTimeout + s.options.SettleTime + 10*time.Second
}

func newEpoch() string {
	var b [epochLen / 2]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// metrics has the metrics of Redis.
type metrics struct {
	rejected   *prometheus.CounterVec
	operations *prometheus.CounterVec
	seconds    *prometheus.HistogramVec
}

// rejections has the reasons that are counted. A value that has just expired, or has the format of
// another version, is an ordinary miss.
var rejections = map[error]string{
	errMoved:    "fence",   // deleted since, from before a restart or failover, or replayed
	errReplayed: "expired", // put back, or kept by a server whose clock was set back
	errSeal:     "seal",    // altered, or stored under another credential's name
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokend_cache_rejected_total",
			Help: "Values in Redis that were not used: fence (from before a delete, a restart or a failover; normal), expired (found long after its end: put back, or the clock of Redis was changed), seal (altered or moved; never normal).",
		}, []string{"reason"}),
		operations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokend_cache_redis_operations_total",
			Help: "Operations on Redis, by outcome: ok, failed (an error, or no answer in time), skipped (Redis has failed too often just before).",
		}, []string{"operation", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tokend_cache_redis_operation_duration_seconds", Help: "How long operations on Redis took, those that failed included.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .5, 1},
		}, []string{"operation"}),
	}
	for _, reason := range rejections {
		m.rejected.WithLabelValues(reason)
	}
	if r == nil {
		return m, nil
	}
	return m, errors.Join(r.Register(m.rejected), r.Register(m.operations), r.Register(m.seconds))
}

// registerUp shows what check says of Redis.
func registerUp(r prometheus.Registerer, check func() error) error {
	if r == nil {
		return nil
	}
	return r.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tokend_cache_redis_up", Help: "1 if Redis answers; 0 if it fails now and then, or cannot be reached.",
	}, func() float64 {
		if check() != nil {
			return 0
		}
		return 1
	}))
}

// reject counts a value that was not used.
func (m *metrics) reject(err error) {
	if reason := rejections[err]; reason != "" {
		m.rejected.WithLabelValues(reason).Inc()
	}
}
