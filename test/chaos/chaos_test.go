package chaos

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/history"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// Chaos: service, Atlas and callers run through hours of random faults in virtual time, on an
// in-memory network. The seed determines the faults and the calls. It is printed, and can be passed
// again. The scheduler orders simultaneous events, so a repeated run is similar, not identical.
var (
	chaosHours = flag.Float64("chaos.hours", 0, "virtual hours of each part of TestChaos, 150 at most; default 2 in a long run, else 3 minutes")
	chaosSeed  = flag.Uint64("chaos.seed", 0, "seed of TestChaos; 0: a new one")
)

var chaosSetups = []chaosSetup{
	{name: "three replicas share", replicas: 3, slot: time.Minute, calls: 8},
	{name: "two replicas cache", replicas: 2, ttl: 20 * time.Second, stale: 10 * time.Second, slot: time.Minute, calls: 8},
	{name: "three replicas with profiles", replicas: 3, profiles: true, slot: 2 * time.Minute, calls: 4},
	{name: "two replicas cache for profiles", replicas: 2, ttl: 20 * time.Second, profiles: true, slot: 2 * time.Minute, calls: 4},
}

const chaosClients = 10

func TestChaos(t *testing.T) {
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	hours := *chaosHours
	if hours == 0 {
		hours = .05
		if testutil.Long() {
			hours = 2. / testutil.Slower
		}
	}
	t.Logf("to repeat: -run '%s' -chaos.hours=%v -chaos.seed=%d", t.Name(), hours, seed)
	for i, setup := range chaosSetups {
		t.Run(setup.name, func(t *testing.T) {
			testutil.ParallelWork(t)
			life := time.Duration(hours * float64(time.Hour))
			var (
				w     *chaosWorld
				calls []chaosCall
			)
			began := time.Now()
			synctest.Test(t, func(t *testing.T) {
				random := rand.New(rand.NewPCG(seed, uint64(i)))
				w = newChaosWorld(t, setup, life, random)
				calls = w.live(random)
			})
			w.judge(t, calls)
			t.Logf("%.1f hours in %v; %s", w.life.Hours(), time.Since(began).Round(time.Millisecond), w.tally(calls))
		})
	}
}

// live runs the callers and the faults, and then checks that the replicas recover and that no
// connection is left open.
func (w *chaosWorld) live(random *rand.Rand) (calls []chaosCall) {
	var callers, troubles sync.WaitGroup
	clients := make([]*chaosClient, chaosClients)
	for i := range clients {
		clients[i] = &chaosClient{world: w, number: i, random: history.Fork(random)}
		callers.Go(clients[i].run)
	}
	done := make(chan struct{})
	for range 3 {
		own := history.Fork(random)
		troubles.Go(func() { w.cause(own, done) })
	}
	callers.Wait()
	close(done)
	troubles.Wait()
	for _, c := range clients {
		calls = append(calls, c.calls...)
	}
	w.recover(history.Fork(random))
	for _, r := range w.replicas {
		if err := r.stop(); err != nil {
			w.t.Errorf("the end: %v", err)
		}
	}
	<-time.After(time.Minute) // let requests end: Close waits for them with a mutex, which stops virtual time
	w.atlas.Close()
	<-time.After(time.Minute)
	if open, _ := w.network.Counts(); open > 0 {
		w.t.Errorf("%d ends of connections are left open", open)
	}
	return calls
}

// patienceForRecovery bounds the recovery. A refused login is repeated after 6 minutes at the
// latest, by a clock that may have been 5 minutes ahead.
const patienceForRecovery = 12 * time.Minute

// recover fails the test unless every replica serves over both transports after the faults.
func (w *chaosWorld) recover(random *rand.Rand) {
	began := time.Now()
	org := max(int(w.life/w.slot)-1, 0) // it was in use, so its fence may still be held
	c := &chaosClient{world: w, number: chaosClients, random: random}
	defer c.hangUp()
	c.connect(org)
	for i := range w.replicas {
		for over, transport := range []string{"gRPC", "REST"} {
			for {
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				out := c.ways[i][over].Call(ctx, testutil.Create, c.credential(org)...)
				cancel()
				if out.Code == codes.OK {
					break
				}
				if time.Since(began) > patienceForRecovery {
					w.t.Errorf("replica %d does not recover over %s: %v %s %s", i, transport, out.Code, out.Reason, out.Message)
					break
				}
				<-time.After(time.Second)
			}
		}
	}
	w.recovered = time.Since(began)
}

// chaosSlack is the latency of a round trip without faults. restExtra is how much longer than their
// deadline REST callers wait.
const (
	chaosSlack = 50 * time.Millisecond
	restExtra  = testutil.RESTExtra
)

// judge checks the times of the responses and the legality of the history.
func (w *chaosWorld) judge(t *testing.T, calls []chaosCall) {
	t.Helper()
	for _, late := range w.late(calls) {
		t.Error(late)
	}
	for _, stack := range w.handled.Panics {
		t.Errorf("a panic:\n%s", stack)
	}
	h := history.New(eventsOf(calls), w.atlas)
	if h.CheckLegal(t, false); t.Failed() {
		w.explain(t, h, calls)
	}
}

func eventsOf(calls []chaosCall) (events []history.Event) {
	for _, c := range calls {
		events = append(events, c.Event)
	}
	return events
}

// late returns calls that took too long, and failures that no fault explains.
func (w *chaosWorld) late(calls []chaosCall) (found []string) {
	for _, c := range calls {
		handled, seen := w.handled.Seen[c.requestID]
		wrong := ""
		switch unanswered := strings.HasPrefix(c.reason, "no answer"); {
		case seen && handled.Took > min(c.patience, chaosCeiling)+chaosSlack:
			wrong = "the service continued after the deadline"
		case c.took > c.patience+restExtra+chaosSlack:
			wrong = "no response"
		case c.reason == "INTERNAL":
			wrong = "an internal error"
		case c.disturbed:
		case c.took > c.patience+chaosSlack:
			wrong = "a late response without a network fault"
		case unanswered && c.transport == "gRPC" && c.took >= c.patience: // the client gives up at its deadline
		case unanswered:
			wrong = "no response without a network fault"
		}
		if wrong != "" {
			found = append(found, fmt.Sprintf("%s: %s over %s with a deadline of %v: %s after %v, in the service %s after %v (%s)",
				wrong, c.Op, c.transport, c.patience, c.reason, c.took, handled.Reason, handled.Took, handled.Cause))
		}
	}
	return found
}

// explain logs the calls of the orgs whose histories are not legal.
func (w *chaosWorld) explain(t *testing.T, h history.History, calls []chaosCall) {
	t.Helper()
	rejected, _ := h.Illegal(false, time.Minute)
	slices.SortFunc(calls, func(a, b chaosCall) int { return int(a.CallTick) - int(b.CallTick) })
	for _, org := range rejected {
		for _, c := range calls {
			if c.Org == org {
				t.Logf("org %d: ticks %d to %d, client %d, %s over %s at replica %d: %s after %v, token %d, hit %v, harmless %v",
					org, c.CallTick, c.Ended, c.Client, c.Op, c.transport, c.Replica, c.reason, c.took, h.Born[c.Token].Generation, c.Hit, c.Harmless)
			}
		}
		for _, b := range h.Born {
			if b.Org == org {
				t.Logf("org %d: token %d was minted at tick %d and deleted at %d", org, b.Generation, b.Minted, b.Deleted)
			}
		}
	}
}

// TestChaosRejects checks that some broken designs are rejected.
func TestChaosRejects(t *testing.T) {
	type mutant struct {
		name   string
		tokens func(tokencache.Atlas) server.Tokens
		finds  func(*chaosWorld, []chaosCall) bool
	}
	for _, mutant := range testutil.Some([]mutant{
		{"no fence", func(a tokencache.Atlas) server.Tokens { return history.NewUnfenced(a, history.ByOrg) }, (*chaosWorld).findsIllegal},
		{"no deadline", func(a tokencache.Atlas) server.Tokens { return deaf{history.Upstream{Atlas: a}} }, func(w *chaosWorld, calls []chaosCall) bool {
			return slices.ContainsFunc(w.late(calls), func(s string) bool { return strings.HasPrefix(s, "the service continued") })
		}},
		{"single flight", func(a tokencache.Atlas) server.Tokens {
			return &history.SingleFlight{Upstream: history.Upstream{Atlas: a}, Key: history.ByOrg}
		}, (*chaosWorld).findsIllegal},
	}, 1) {
		t.Run(mutant.name, func(t *testing.T) {
			testutil.ParallelWork(t)
			for seed := range uint64(20) { // a single run may lack the fault
				found := false
				synctest.Test(t, func(t *testing.T) {
					random := rand.New(rand.NewPCG(seed, 0)) // repeatable on purpose
					w := newChaosWorld(t, chaosSetup{replicas: 1, slot: time.Minute, calls: 8, tokens: mutant.tokens}, 10*time.Minute, random)
					found = mutant.finds(w, w.live(random))
				})
				if found {
					return
				}
			}
			t.Error("not rejected")
		})
	}
}

func (w *chaosWorld) findsIllegal(calls []chaosCall) bool {
	h := history.New(eventsOf(calls), w.atlas)
	return h.Violations() > 0 || h.Dead(false) > 0
}

// deaf ignores its callers' deadlines.
type deaf struct{ history.Upstream }

func (d deaf) Create(ctx context.Context, cred atlas.Credential, _ bool) (tokencache.Result, error) {
	return d.Ask(context.WithoutCancel(ctx), cred)
}

func (d deaf) Delete(ctx context.Context, cred atlas.Credential) (string, error) {
	return d.Send(context.WithoutCancel(ctx), cred)
}

// tally summarizes a run.
func (w *chaosWorld) tally(calls []chaosCall) string {
	reasons := map[string]int{}
	hits := 0
	for _, c := range calls {
		reasons[c.reason]++
		if c.Hit {
			hits++
		}
	}
	incarnations, faults := 0, 0
	for _, r := range w.replicas {
		incarnations += r.last
	}
	for _, n := range w.faults {
		faults += n
	}
	_, connections := w.network.Counts()
	return fmt.Sprintf("%d calls: %s; %d cached; recovered %v after the last fault\n%d connections, %d starts of replicas, %d faults: %s",
		len(calls), history.Tally(reasons), hits, w.recovered, connections, incarnations, faults, history.Tally(w.faults))
}
