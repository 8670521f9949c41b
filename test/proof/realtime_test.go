package proof

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/history"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// The same as TestChaos with real sockets, a real clock and Redis: fewer faults, but the kernel's.
var (
	chaosRealTime = flag.Duration("chaos.realtime", 0, "how long TestChaosRealTime lasts; default 20 s in a long run, else 1 s")
	chaosSeed     = flag.Uint64("chaos.seed", 0, "seed of TestChaosRealTime; 0: a new one")
)

// The times of TestChaosRealTime. What a proxy holds back arrives within the settle time.
const (
	realAtlasTimeout = time.Second * testutil.Slower
	realCeiling      = 3 * time.Second * testutil.Slower
	realSettle       = 4 * time.Second * testutil.Slower
	realTTL          = 500 * time.Millisecond
	realPatience     = 2 * time.Second * testutil.Slower
	realSlack        = 10 * time.Second // of a machine that is busy with other things
)

func TestChaosRealTime(t *testing.T) {
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	life := *chaosRealTime
	if life == 0 {
		life = time.Second
		if testutil.Long() {
			life = 20 * time.Second
		}
	}
	t.Logf("the same faults again: -chaos.realtime=%v -chaos.seed=%d", life, seed)
	before, others := testutil.Descriptors(t), goleak.IgnoreCurrent()
	t.Run("faults", func(t *testing.T) {
		w := newRealWorld(t, life)
		w.live(t, rand.New(rand.NewPCG(seed, 0)))
	})
	goleak.VerifyNone(t, append(testutil.ToxiproxyLeaks, others)...)
	testutil.Eventually(t, func() bool { return testutil.Descriptors(t) <= before }, "there are more descriptors than before")
}

// realWorld has two replicas that share a Redis, with a proxy on every way.
type realWorld struct {
	*world

	life    time.Duration
	handled *history.CallLog
	proxies []*toxiproxy.Proxy
	log     zerolog.Logger

	mu     sync.Mutex
	faults map[string]int // guarded by mu; how often each was
}

func newRealWorld(t *testing.T, life time.Duration) *realWorld {
	t.Helper()
	em, err := emulator.Start(emulator.Config{Orgs: 10 + int(life/orgTime)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	w := &realWorld{
		world: &world{setup: setup{ttl: realTTL, redis: redistest.Start(t)}, atlas: em, began: time.Now()},
		life:  life, handled: &history.CallLog{Seen: map[string]history.HandledCall{}}, log: zerolog.Nop(), faults: map[string]int{},
	}
	for _, org := range em.Orgs() {
		w.jwts = append(w.jwts, [2]string{org.JWT(), org.JWT()})
	}
	for range 2 {
		w.addReplica(t)
	}
	return w
}

// proxy puts one in front of an address, and returns its own.
func (w *realWorld) proxy(t *testing.T, upstream string) string {
	t.Helper()
	p := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), w.log), upstream, "127.0.0.1:0", upstream)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	w.proxies = append(w.proxies, p)
	return p.Listen
}

func (w *realWorld) addReplica(t *testing.T) {
	t.Helper()
	settings := replicaSettings{TTL: realTTL, RedisURL: "redis://" + w.proxy(t, w.redis.Addr())}
	toAtlas := w.proxy(t, strings.TrimSuffix(strings.TrimPrefix(w.atlas.URL(), "https://"), "/v1"))
	s := testutil.StartWith(t, testutil.Plaintext, w.atlas, func(c *server.Config, a *atlas.Config) {
		at := *c
		*c = settings.config(nil)
		c.GRPCAddr, c.HTTPAddr = at.GRPCAddr, at.HTTPAddr
		c.CallCeiling, c.DrainTimeout, c.Cache.SettleTime = realCeiling, realCeiling, realSettle
		c.Logger = slog.New(w.handled)
		a.BaseURL, a.Timeout = "https://"+toAtlas+"/v1", realAtlasTimeout
	})
	again := backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond}
	conn, err := grpc.NewClient(w.proxy(t, s.GRPCAddr().String()), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: again, MinConnectTimeout: time.Second}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	w.callers = append(w.callers, [2]testutil.Caller{
		testutil.NewGRPCCaller(conn),
		testutil.RESTCaller{Base: "http://" + w.proxy(t, s.HTTPAddr().String()), Client: &http.Client{Transport: transport}},
	})
}

// orgTime is how long an org is used before the next is, so that histories are short.
const orgTime = 300 * time.Millisecond

// live lets callers call and faults happen.
func (w *realWorld) live(t *testing.T, random *rand.Rand) {
	t.Helper()
	var callers, troubles sync.WaitGroup
	done := make(chan struct{})
	for _, p := range w.proxies {
		own := history.Fork(random)
		troubles.Go(func() { w.cause(t, p, own, done) })
	}
	all := make([][]history.Event, 8)
	end := w.began.Add(w.life)
	for client := range all {
		callers.Go(func() {
			own := rand.New(rand.NewPCG(uint64(client), 3)) // repeatable on purpose
			for time.Now().Before(end) {
				began := time.Now()
				org := int(began.Sub(w.began) / orgTime)
				all[client] = append(all[client], w.call(client, org, own, traffic{deletes: .06, fresh: .1, impatient: .05}))
				if took := time.Since(began); took > proofCeiling+testutil.RESTExtra+realSlack {
					t.Errorf("no answer after %v", took)
				}
				<-time.After(time.Duration(own.IntN(30)) * time.Millisecond) // as callers do
			}
		})
	}
	callers.Wait()
	close(done)
	troubles.Wait()
	w.recover(t)
	events := slices.Concat(all...)
	for _, h := range w.handled.Seen {
		if h.Took > realCeiling+realSlack {
			t.Errorf("a call took the service %v, longer than its ceiling: %s (%s)", h.Took, h.Reason, h.Cause)
		}
	}
	for _, stack := range w.handled.Panics {
		t.Errorf("a panic:\n%s", stack)
	}
	check(t, history.New(events, w.atlas), true)
	t.Logf("%d calls, %s; answers of the service: %s; faults: %s", len(events), w.requests(), history.Tally(w.handled.Reasons()), history.Tally(w.faults))
}

// toxics are what toxiproxy does to what passes one of its proxies, each with what may be at random
// in it.
var toxics = map[string]func(*rand.Rand) string{
	"latency": func(r *rand.Rand) string {
		return fmt.Sprintf(`"latency": %d, "jitter": %d`, 10+r.IntN(500), r.IntN(100))
	},
	"reset_peer": func(r *rand.Rand) string { return fmt.Sprintf(`"timeout": %d`, r.IntN(200)) },
	"timeout":    func(r *rand.Rand) string { return fmt.Sprintf(`"timeout": %d`, 100+r.IntN(900)) },
	"limit_data": func(r *rand.Rand) string { return fmt.Sprintf(`"bytes": %d`, 50+r.IntN(5000)) },
	"slicer": func(r *rand.Rand) string {
		return fmt.Sprintf(`"average_size": %d, "size_variation": 1, "delay": 100`, 2+r.IntN(100))
	},
}

// cause has one fault after the other at a proxy until done is closed.
func (w *realWorld) cause(t *testing.T, p *toxiproxy.Proxy, random *rand.Rand, done <-chan struct{}) {
	names := append(slices.Sorted(maps.Keys(toxics)), "down")
	pause := func(most int) bool {
		select {
		case <-time.After(time.Duration(random.IntN(most)) * time.Millisecond):
			return true
		case <-done:
			return false
		}
	}
	for pause(1500) {
		name := names[random.IntN(len(names))]
		w.count(name)
		if name == "down" {
			p.Stop()
			pause(500)
			if err := p.Start(); err != nil {
				t.Errorf("a proxy does not start again: %v", err)
			}
			continue
		}
		stream := history.OneOf(random, "upstream", "downstream")
		toxic := fmt.Sprintf(`{"name": "fault", "type": %q, "stream": %q, "attributes": {%s}}`, name, stream, toxics[name](random))
		if _, err := p.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
			t.Errorf("toxic %s: %v", toxic, err)
			return
		}
		pause(1000)
		if err := p.Toxics.RemoveToxic(context.Background(), "fault"); err != nil {
			t.Errorf("toxic %s: %v", name, err)
		}
	}
}

func (w *realWorld) count(fault string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults[fault]++
}

// recover fails the test unless every replica serves over both transports once nothing is wrong any
// more.
func (w *realWorld) recover(t *testing.T) {
	t.Helper()
	jwt := "JWT " + w.jwts[len(w.jwts)-1][0]
	for i, ways := range w.callers {
		for over, through := range ways {
			testutil.Eventually(t, func() bool {
				ctx, cancel := context.WithTimeout(context.Background(), realPatience)
				defer cancel()
				return through.Call(ctx, testutil.Create, "authorization", jwt).Code == codes.OK
			}, fmt.Sprintf("replica %d does not recover over transport %d", i, over))
		}
	}
}
