package proof

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/history"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// The times of a world. They are short, for many events in little time. Late effects at Atlas
// happen within the settle time.
const (
	proofAtlasTimeout = 150 * time.Millisecond * testutil.Slower
	proofCeiling      = 2 * time.Second * testutil.Slower
	proofSettle       = 400 * time.Millisecond * testutil.Slower
	proofTTL          = 300 * time.Millisecond
)

// setup is the configuration of a world.
type setup struct {
	replicas int
	orgs     int
	ttl      time.Duration
	stale    time.Duration
	redis    *redistest.Server // nil: none
	budget   time.Duration     // for Redis
	profiles profileKind
	// atlasTimeout is the timeout for Atlas; 0: proofAtlasTimeout.
	atlasTimeout time.Duration
	// heard, if set, receives the logins and refreshes of each profile.
	heard func(profile string, e atlas.IdentityEvent)
	// tokens, if set, replaces the cache of a replica.
	tokens func(tokencache.Atlas) server.Tokens
}

// world is an Atlas, replicas of the service, and callers with two credentials for each org, or
// with a profile.
type world struct {
	setup

	atlas    *emulator.Emulator
	jwts     [][2]string // by org
	held     *held       // nil without profiles
	replicas []*proofReplica
	callers  [][2]testutil.Caller // of each replica, over gRPC and REST
	began    time.Time
}

// proofReplica is a server with its proxy to Redis.
type proofReplica struct {
	*testutil.Service

	proxy *redistest.Proxy // nil without Redis
}

func newWorld(t *testing.T, s setup) *world {
	t.Helper()
	config, clock := emulator.Config{Orgs: s.orgs}, testutil.NewClock()
	if s.profiles != noProfiles {
		config = heldConfig(s.orgs, clock)
	}
	em, err := emulator.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	w := &world{setup: s, atlas: em, began: time.Now()}
	for _, org := range em.Orgs() {
		lasting := emulator.JWT{Lifetime: 10_000 * time.Hour} // longer than any run
		w.jwts = append(w.jwts, [2]string{org.MintJWT(lasting), org.MintJWT(lasting)})
	}
	if s.profiles != noProfiles {
		w.held = newHeld(t, w, clock)
	}
	for range s.replicas {
		w.replicas = append(w.replicas, w.newReplica(t))
	}
	return w
}

func (w *world) newReplica(t *testing.T) *proofReplica {
	t.Helper()
	r := &proofReplica{}
	cache := tokencache.Config{TTL: w.ttl, StaleIfError: w.stale, SettleTime: proofSettle}
	if w.redis != nil {
		r.proxy = w.redis.NewProxy()
		cache.Redis = &tokencache.RedisConfig{URL: r.proxy.URL(), Budget: w.budget}
	}
	r.Service = testutil.StartWith(t, testutil.Plaintext, w.atlas, func(c *server.Config, a *atlas.Config) {
		c.Logger, c.CallCeiling, c.DrainTimeout, c.Cache = slog.New(slog.DiscardHandler), proofCeiling, proofCeiling, cache
		if w.tokens != nil {
			c.Cache, c.Tokens = tokencache.Config{}, w.tokens
		}
		a.Timeout = cmp.Or(w.atlasTimeout, proofAtlasTimeout)
		if w.held != nil {
			w.held.join(t, c, *a)
		}
	})
	testutil.Eventually(t, func() bool { _, body := r.Get(t, "/readyz"); return body == "ready\n" }, "the replica is not ready")
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	w.callers = append(w.callers, [2]testutil.Caller{r.GRPCCaller(t), testutil.RESTCaller{Base: "http://" + r.HTTPAddr().String(), Client: &http.Client{Transport: transport}}})
	return r
}

// traffic is the rates of the callers' operations.
type traffic struct {
	operations int
	clients    int
	deletes    float64 // of all operations
	fresh      float64 // of the creates
	impatient  float64 // of the operations: cancelled after some milliseconds
	invented   float64 // of the other operations: deletes with an invented JWT
}

// run makes the calls and returns their history. All callers use one org at a time, or a few with
// profiles, and move on to the next.
func (w *world) run(t *testing.T, l traffic) history.History {
	t.Helper()
	var (
		wg     sync.WaitGroup
		each   = l.operations / l.clients
		events = make([][]history.Event, l.clients)
	)
	for client := range l.clients {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(client), 1)) // repeatable on purpose
			for i := range each {
				org := i * w.orgs / each
				if w.held != nil {
					org = w.held.enter(i*(w.orgs/sideBySide)/each, random)
				}
				events[client] = append(events[client], w.call(client, org, random, l))
				if w.held != nil {
					w.held.clock.Advance(profileStep)
				}
			}
		})
	}
	wg.Wait()
	var all []history.Event
	for _, some := range events {
		all = append(all, some...)
	}
	return history.New(all, w.atlas)
}

// call makes one call to a random replica over a random transport.
func (w *world) call(client, org int, random *rand.Rand, l traffic) history.Event {
	e := history.Event{Client: client, Org: org, Op: testutil.Create}
	e.JWT, e.Replica = random.IntN(2), random.IntN(len(w.callers))
	headers := []string{"authorization", "JWT " + w.jwts[org][e.JWT]}
	profile := ""
	if w.held != nil {
		profile = w.held.choose(&e, random)
	}
	switch dice := random.Float64(); {
	case dice < l.deletes:
		e.Op = testutil.Delete
	case dice < l.deletes+(1-l.deletes)*l.fresh:
		headers = append(headers, "cache-control", "no-cache")
	case random.Float64() < l.invented: // by a caller that knows the org only
		e.Op, e.Invented = testutil.Delete, true
		headers[1], profile = "JWT "+history.Invent(w.jwts[org][random.IntN(2)]), ""
	}
	if profile != "" {
		headers[1] = w.held.bearer[profile]
	}
	patience := proofCeiling
	if random.Float64() < l.impatient {
		patience = time.Duration(5+random.IntN(20)) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	through := w.callers[e.Replica][random.IntN(2)]
	settle := func() {}
	if e.JWT == history.Pairs && e.Op == testutil.Create {
		settle = w.held.begin(&e, profile)
	}

	e.CallTick, e.Call = w.atlas.Tick(), int64(time.Since(w.began))
	out := through.Call(ctx, e.Op, headers...)
	e.Answer, e.Ended = int64(time.Since(w.began)), w.atlas.Tick()
	e.OK, e.Token = out.Code == codes.OK, out.Token
	e.Hit = strings.Contains(out.Get("cache-status"), "; hit")
	e.Harmless = history.IsHarmless(out)
	settle()
	return e
}

// injectFaults injects random faults at Atlas, others every few milliseconds, until stop.
func (w *world) injectFaults(faults ...emulator.Fault) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		random := rand.New(rand.NewPCG(7, 7)) // repeatable on purpose
		for {
			removers := []func(){}
			for _, fault := range faults {
				if random.IntN(3) == 0 {
					removers = append(removers, w.atlas.Inject(fault))
				}
			}
			select {
			case <-time.After(time.Duration(2+random.IntN(10)) * time.Millisecond * testutil.Slower):
			case <-done:
			}
			for _, remove := range removers {
				remove()
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	return func() {
		close(done)
		wg.Wait()
	}
}

// watchCreates returns a function that returns the most creates in flight at Atlas until then.
func (w *world) watchCreates() (most func() int) {
	done, found := make(chan struct{}), make(chan int)
	go func() {
		most := 0
		for {
			c := w.atlas.Counters()
			n := c.Calls[emulator.Create]
			for _, answered := range c.Statuses[emulator.Create] {
				n -= answered
			}
			most = max(most, n)
			select {
			case <-time.After(time.Millisecond):
			case <-done:
				found <- most
				return
			}
		}
	}()
	return func() int {
		close(done)
		return <-found
	}
}

// Faults of Atlas.
var (
	slowAnswers = []emulator.Fault{
		{On: emulator.Create, Delay: 3 * time.Millisecond, AfterEffect: true},
		{On: emulator.Create, Delay: 2 * time.Millisecond},
		{On: emulator.Delete, Delay: 3 * time.Millisecond, AfterEffect: true},
		{On: emulator.Delete, Delay: 2 * time.Millisecond},
	}
	// Calls for a credential overlap, and are answered out of order.
	slowerAnswers = []emulator.Fault{
		{On: emulator.Create, Delay: 8 * time.Millisecond, AfterEffect: true},
		{On: emulator.Create, Delay: 12 * time.Millisecond},
		{On: emulator.Create, Delay: 16 * time.Millisecond, AfterEffect: true},
		{On: emulator.Delete, Delay: 8 * time.Millisecond, AfterEffect: true},
		{On: emulator.Delete, Delay: 4 * time.Millisecond},
	}
	slowerFailures = append([]emulator.Fault{
		{On: emulator.Create, Times: 1, Status: 503},
		{On: emulator.Create, Times: 1, Status: 401},
		{On: emulator.Delete, Times: 1, Status: 403},
	}, slowerAnswers...)
	resets = append([]emulator.Fault{
		{On: emulator.Create, Times: 1, Drop: emulator.ResetConnection, AfterEffect: true},
		{On: emulator.Delete, Times: 1, Drop: emulator.ResetConnection, AfterEffect: true},
		{On: emulator.Create, Times: 1, Shape: emulator.Reset},
	}, slowAnswers...)
	failures = append([]emulator.Fault{
		{On: emulator.Create, Times: 2, Status: 503},
		{On: emulator.Delete, Times: 1, Status: 500, AfterEffect: true},
		{On: emulator.Delete, Times: 1, Status: 429},
		{On: emulator.Create, Times: 1, Status: 401},
	}, slowAnswers...)
	// A delete that takes effect after its caller has left.
	lateEffects = append([]emulator.Fault{
		{On: emulator.Delete, Times: 1, Delay: proofAtlasTimeout + 50*time.Millisecond, EvenIfGone: true},
		{On: emulator.Create, Times: 1, Delay: proofAtlasTimeout + 50*time.Millisecond, EvenIfGone: true},
	}, slowAnswers...)
)

// checkRedis fails the test if Redis contains a secret.
func (w *world) checkRedis(t *testing.T) {
	t.Helper()
	dump := ""
	for key := range strings.FieldsSeq(w.redis.Command("KEYS", "*")) {
		dump += key + "\n" + w.redis.Command("EVAL", "return redis.call('TYPE', KEYS[1]).ok == 'hash' and table.concat(redis.call('HGETALL', KEYS[1]), ' ') or redis.call('GET', KEYS[1])", "1", key) + "\n"
	}
	for _, token := range w.atlas.Tokens() {
		if strings.Contains(dump, token.Value) {
			t.Fatal("Redis contains a token")
		}
	}
	for _, org := range w.atlas.Orgs() {
		if strings.Contains(dump, org.UserAuthToken()) {
			t.Fatal("Redis contains a userauthtoken")
		}
	}
	for _, pair := range w.jwts {
		for _, jwt := range pair {
			for part := range strings.SplitSeq(jwt, ".") {
				if strings.Contains(dump, part) {
					t.Fatal("Redis contains a JWT")
				}
			}
		}
	}
}

// requests returns the counts of Atlas's requests.
func (w *world) requests() string {
	return fmt.Sprintf("%d creates and %d deletes at Atlas, %d tokens", w.atlas.Calls(emulator.Create), w.atlas.Calls(emulator.Delete), len(w.atlas.Tokens()))
}
