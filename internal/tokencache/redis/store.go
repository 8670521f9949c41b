// Package redis caches tokens in Redis or Valkey, for all replicas of the service.
//
// Each token is guarded by the fence of its org, which a delete moves (scripts.go), and sealed with
// a key that is derived from its credential (seal.go). Fence and value are read in one round trip.
// Nothing is cached in this process as well: a copy could be read after its fence has moved.
//
// A create that cannot reach Redis goes to Atlas. A delete that cannot move the fence is not
// acknowledged before every copy must have expired; until then it goes on trying (Store.Settle).
package redis

import (
	"context"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Store is a cache in Redis. It must be closed.
type Store struct {
	// client is not embedded: its promoted methods have types of the library, which would be
	// compiled into each importer, two seconds for each.
	client *client

	cfg                  Config
	lateMoves, lateDrops chan struct{} // a slot for each that is retried
}

// Bounds of the operations that are retried at a time, because callers can invent any number of
// credentials. Values that are not dropped expire.
const (
	maxLateMoves = 256
	maxLateDrops = 64
)

// New returns a Store. It does not wait for Redis.
func New(cfg Config) (*Store, error) {
	c, err := newClient(context.Background(), cfg)
	if err != nil {
		return nil, err
	}
	promauto.With(cfg.Registerer).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tokend_cache_redis_up", Help: "1 if Redis answers; 0 if it fails now and then, or cannot be reached.",
	}, func() float64 {
		if c.check() != nil {
			return 0
		}
		return 1
	})
	c.batcher = newBatcher(c)
	c.work.Go(c.connect)
	return &Store{c, cfg, make(chan struct{}, maxLateMoves), make(chan struct{}, maxLateDrops)}, nil
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

func (i *Item) keys() []string { return []string{keyAll, i.orgKey, i.tokenKey} }

// orgKey returns the key of an org's fence, which does not reveal the org. "" is every org.
func orgKey(org string) string {
	if org == "" {
		return keyAll
	}
	sum := sha256.Sum256([]byte("org\x00" + org))
	return keyOrgPrefix + hex.EncodeToString(sum[:16])
}

// Snapshot has the epochs of the fences, and when they were read. The zero Snapshot is of a Redis
// that has not answered.
type Snapshot struct {
	at       time.Time
	now      int64 // ms, Redis's clock
	all, org string
}

// Found is a cached token, or none if Token is "".
type Found struct {
	Token string
	Age   time.Duration // since Atlas was asked
	TTL   time.Duration // left; zero or less: stale
}

// Get returns the token that is cached for an item, and the Snapshot for Put.
func (s *Store) Get(ctx context.Context, item *Item) (Found, Snapshot) {
	answer, err := s.client.read(ctx, item.keys(), newEpoch(), milliseconds(s.keepFences()))
	if err != nil {
		return Found{}, Snapshot{}
	}
	at := time.Now() // after Redis read its clock, so that values expire early rather than late
	v, value, err := parseRead(answer)
	if err != nil {
		s.client.health.report(at, err)
		return Found{}, Snapshot{}
	}
	v.at = at
	if value == nil {
		return Found{}, v
	}
	token, header, err := open([]byte(*value), item.aead, item.tokenKey, v.now, v.all, v.org)
	if err != nil {
		s.client.metrics.reject(err)
		return Found{}, v
	}
	f := Found{token, sinceThen(header.since, v.now), sinceThen(v.now, header.fresh)}
	if f.Age >= s.cfg.TTL+s.cfg.StaleIfError { // it was stored under a longer TTL than ours
		return Found{}, v
	}
	f.TTL = min(f.TTL, s.cfg.TTL-f.Age)
	return f, v
}

func sinceThen(then, now int64) time.Duration { return time.Duration(now-then) * time.Millisecond }

// parseRead parses the answer of scriptRead. The value is nil if there is none.
func parseRead(answer any) (v Snapshot, value *string, err error) {
	fields, _ := answer.([]any)
	if len(fields) != 4 {
		return Snapshot{}, nil, errMalformed
	}
	var ok1, ok2, ok3 bool
	v.now, ok1 = fields[0].(int64)
	v.all, ok2 = fields[1].(string)
	v.org, ok3 = fields[2].(string)
	stored, there := fields[3].(string)
	if !ok1 || !ok2 || !ok3 || !there && fields[3] != nil || len(v.all) != epochLen || v.org != "" && len(v.org) != epochLen {
		return Snapshot{}, nil, errMalformed
	}
	if there {
		value = &stored
	}
	return v, value, nil
}

// Put caches Atlas's answer to a call that began after the Snapshot was taken, for at most life.
func (s *Store) Put(ctx context.Context, v Snapshot, item *Item, token string, life time.Duration) {
	if v.now == 0 {
		return // Redis did not answer
	}
	end := v.now + (time.Since(v.at) + min(life, 1000*time.Hour)).Milliseconds()
	header := sealed{
		since: v.now, fresh: min(v.now+s.cfg.TTL.Milliseconds(), end),
		until: min(v.now+(s.cfg.TTL+s.cfg.StaleIfError).Milliseconds(), end),
		all:   v.all, org: v.org,
	}
	_, _ = s.client.do(ctx, "put", usual, scriptPut, item.keys(),
		v.all, v.org, note(v.all, item, token), string(header.seal(item.aead, item.tokenKey, token)),
		strconv.FormatInt(header.until, 10), newEpoch(), milliseconds(s.keepFences()),
	) // if it fails, nothing is cached, and the client has reported it
}

// note returns a hash of a token, by which replicas compare their tokens. Its key is the epoch of
// every org's fence, so it cannot be compared once that fence has moved.
func note(all string, item *Item, token string) string {
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

// Outcome is the outcome of a delete at Atlas.
type Outcome int

// The outcomes of a delete.
const (
	Done    Outcome = iota // Atlas has confirmed it
	NotDone                // Atlas has not carried it out, and will not
	Unknown                // it may have taken effect, or may still do so
)

// Hold holds an org until Settle: no cached token of the org is read meanwhile. If it fails, other
// replicas read the old token until Settle. The hold of a replica that is killed ends by itself,
// later than any delete.
func (s *Store) Hold(org, name string) {
	_ = s.move(insist, org, name, "", s.cfg.CallTimeout+s.cfg.SettleTime)
}

// Settle moves the fence of an org ("": of every org), unless the delete was not carried out, and
// ends the hold, if there is one: at once, or after the settle time if the outcome is unknown. It
// returns nil when the deleted token cannot be read any more. If Redis cannot be reached that takes
// until all copies have expired; if ctx ends before that, its error is returned, and moving the
// fence is retried without the caller.
func (s *Store) Settle(ctx context.Context, org, hold string, outcome Outcome) error {
	if outcome == NotDone {
		_ = s.move(insist, org, hold, "", 0) // if it fails, the hold expires
		return nil
	}
	lasting := time.Duration(0)
	if outcome == Unknown {
		lasting = s.cfg.SettleTime
	}
	if s.move(insist, org, hold, newEpoch(), lasting) == nil {
		return nil
	}
	// By then, every copy that was stored before the delete took effect has expired.
	last := s.lifetime() + lasting
	moved := s.client.retry(s.lateMoves, last, func() error { return s.move(patient, org, hold, newEpoch(), lasting) })
	if outcome != Done {
		return nil // the caller does not get an acknowledgement
	}
	expired := time.NewTimer(last)
	defer expired.Stop()
	select {
	case <-moved:
		return nil
	case <-expired.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.client.ctx.Done():
		return errClosed
	}
}

// move moves a fence to an epoch, unless that is "", and holds it for a time.
func (s *Store) move(how effort, org, hold, epoch string, lasting time.Duration) error {
	began := time.Now()
	answer, err := s.client.do(context.Background(), "move", how, scriptHold, []string{orgKey(org)},
		epoch, "hold:"+hold, milliseconds(lasting), milliseconds(s.keepFences()))
	if err == nil && answer != any(int64(1)) {
		err = errMalformed
		s.client.health.report(began, err)
	}
	return err
}

// lifetime is the time after which all copies that are in Redis now must have expired. It has a
// margin of one percent plus 100 ms, because clocks run at different speeds.
func (s *Store) lifetime() time.Duration {
	last := s.cfg.TTL + s.cfg.StaleIfError
	return last + last/100 + 100*time.Millisecond
}

// keepFences is longer than any call takes. Fences live at least as long as the values behind them.
func (s *Store) keepFences() time.Duration {
	return s.cfg.CallTimeout + s.cfg.SettleTime + 10*time.Second
}

// newEpoch returns a generation of a fence. It is random, so that an epoch that was lost never
// comes back.
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

func newMetrics(r prometheus.Registerer) *metrics {
	auto := promauto.With(r)
	m := &metrics{
		rejected: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "tokend_cache_rejected_total",
			Help: "Values in Redis that were not used: fence (from before a delete, a restart or a failover; normal), expired (found long after its end: put back, or the clock of Redis was changed), seal (altered or moved; never normal).",
		}, []string{"reason"}),
		operations: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "tokend_cache_redis_operations_total",
			Help: "Operations on Redis, by outcome: ok, failed (an error, or no answer in time), skipped (Redis has failed too often just before).",
		}, []string{"operation", "outcome"}),
		seconds: auto.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tokend_cache_redis_operation_duration_seconds", Help: "How long operations on Redis took, those that failed included.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .5, 1},
		}, []string{"operation"}),
	}
	for _, reason := range rejections {
		m.rejected.WithLabelValues(reason)
	}
	return m
}

// reject counts a value that was not used.
func (m *metrics) reject(err error) {
	if reason := rejections[err]; reason != "" {
		m.rejected.WithLabelValues(reason).Inc()
	}
}

var errClosed = errors.New("token cache closed")
