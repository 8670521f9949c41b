package chaos

import (
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/history"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/network"
)

// chaosFault is one kind of fault. begin starts it and returns a function that ends it.
type chaosFault struct {
	name  string
	lasts [2]time.Duration // at least, at most
	begin func(w *chaosWorld, random *rand.Rand) (end func())
}

// Durations of faults. Late effects happen within the settle time of a delete.
var (
	moment = [2]time.Duration{100 * time.Millisecond, 3 * time.Second}
	while  = [2]time.Duration{2 * time.Second, 15 * time.Second}
	long   = [2]time.Duration{10 * time.Second, 60 * time.Second}
)

var chaosFaults = []chaosFault{
	{"latency", while, onLink(func(r *rand.Rand) network.Conditions {
		return network.Conditions{Latency: between(r, 10*time.Millisecond, time.Second)}
	})},
	{"stall", while, onLink(func(r *rand.Rand) network.Conditions {
		return network.Conditions{Until: time.Now().Add(between(r, time.Second, 15*time.Second))}
	})},
	{"small pieces", while, onLink(func(r *rand.Rand) network.Conditions {
		return network.Conditions{Pieces: 1 + r.IntN(64), Latency: between(r, 0, 5*time.Millisecond)}
	})},
	{"refused connections", while, onLink(func(*rand.Rand) network.Conditions { return network.Conditions{Refused: true} })},
	{"black hole", long, onLink(func(*rand.Rand) network.Conditions { return network.Conditions{Silence: true} })},
	{"resets", moment, toConnections(func(l *network.Link, _ *rand.Rand) { l.Each(.5, (*network.Conn).Reset) })},
	{"truncation", while, toConnections(func(l *network.Link, r *rand.Rand) { l.Lose(.5, func(c *network.Conn) { c.Truncate(r.IntN(200)) }) })},
	{"vanished connections", moment, toConnections(func(l *network.Link, _ *rand.Rand) { l.Lose(.5, (*network.Conn).Vanish) })},
	{"crash", while, crash},
	{"restart", moment, restart},
	{"crash of all", moment, crashAll},
	{"clock jump of Atlas", long, func(w *chaosWorld, r *rand.Rand) func() { return jump(&w.skew, r) }},
	{"clock jump of a replica", long, func(w *chaosWorld, r *rand.Rand) func() { return jump(&w.someReplica(r).skew, r) }},
	{"refused logins", long, atAtlas(emulator.Fault{On: emulator.Login, Status: http.StatusBadRequest})},
	{"failing logins", while, atAtlas(emulator.Fault{On: emulator.Login, Status: http.StatusServiceUnavailable})},
	{"refused refreshes", long, atAtlas(emulator.Fault{On: emulator.Refresh, Status: http.StatusBadRequest})},
	{"revoked JWTs", moment, eachOrg((*emulator.Org).RevokeJWTs)},
	{"rotated secrets", moment, eachOrg(func(o *emulator.Org) { o.RotateUserAuthToken() })},
	{"slow Atlas", while, slowAtlas},
	{"failing Atlas", while, badStatus},
	{"broken answers", while, badShape},
	{"dropped requests", while, dropped},
	{"late effects", while, lateEffect},
	{"throttling", moment, throttling},
}

func between(random *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(random.Int64N(int64(most-least)+1))
}

// cause runs one fault after another until done is closed.
func (w *chaosWorld) cause(random *rand.Rand, done <-chan struct{}) {
	pause := func(d time.Duration) {
		select {
		case <-time.After(d):
		case <-done:
		}
	}
	for {
		pause(between(random, 0, 40*time.Second))
		select {
		case <-done:
			return
		default:
		}
		fault := chaosFaults[random.IntN(len(chaosFaults))]
		w.count(fault.name)
		end := fault.begin(w, random)
		pause(between(random, fault.lasts[0], fault.lasts[1]))
		end()
	}
}

func (w *chaosWorld) count(fault string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults[fault]++
}

func (w *chaosWorld) someReplica(random *rand.Rand) *chaosReplica {
	return w.replicas[random.IntN(len(w.replicas))]
}

// someLink returns a random link between callers, replicas and Atlas.
func (w *chaosWorld) someLink(random *rand.Rand) *network.Link {
	r := w.someReplica(random)
	if random.IntN(2) == 0 {
		return r.toAtlas
	}
	return r.fromCallers
}

type beginning = func(w *chaosWorld, random *rand.Rand) (end func())

func onLink(now func(*rand.Rand) network.Conditions) beginning {
	return func(w *chaosWorld, random *rand.Rand) func() { return w.someLink(random).Set(now(random)) }
}

func toConnections(do func(*network.Link, *rand.Rand)) beginning {
	return func(w *chaosWorld, random *rand.Rand) func() {
		do(w.someLink(random), random)
		return func() {}
	}
}

func crash(w *chaosWorld, random *rand.Rand) func() {
	r := w.someReplica(random)
	r.crash()
	return r.start
}

func crashAll(w *chaosWorld, _ *rand.Rand) func() {
	for _, r := range w.replicas {
		r.crash()
	}
	return w.startAll
}

func (w *chaosWorld) startAll() {
	for _, r := range w.replicas {
		r.start()
	}
}

func restart(w *chaosWorld, random *rand.Rand) func() {
	r := w.someReplica(random)
	if err := r.stop(); err != nil {
		w.t.Errorf("a drain: %v", err)
	}
	return r.start
}

func jump(clock *atomic.Int64, random *rand.Rand) func() {
	clock.Store(int64(between(random, -5*time.Minute, 5*time.Minute)))
	return func() { clock.Store(0) }
}

func atAtlas(fault emulator.Fault) beginning {
	return func(w *chaosWorld, _ *rand.Rand) func() { return w.atlas.Inject(fault) }
}

func eachOrg(do func(*emulator.Org)) beginning {
	return func(w *chaosWorld, _ *rand.Rand) func() {
		for _, org := range w.atlas.Orgs() {
			do(org)
		}
		return func() {}
	}
}

// someOperation returns an operation that callers wait for, or any.
func someOperation(random *rand.Rand) emulator.Operation {
	return []emulator.Operation{emulator.Any, emulator.Create, emulator.Delete, emulator.Login}[random.IntN(4)]
}

func slowAtlas(w *chaosWorld, random *rand.Rand) func() {
	return w.atlas.Inject(emulator.Fault{
		On: someOperation(random), Delay: between(random, 10*time.Millisecond, 7*time.Second), AfterEffect: random.IntN(2) == 0,
	})
}

// badStatus has no refusal after an effect, since the service could not detect that.
func badStatus(w *chaosWorld, random *rand.Rand) func() {
	status := history.OneOf(random, 302, 401, 403, 404, 409, 500, 502, 503)
	return w.atlas.Inject(emulator.Fault{On: someOperation(random), Status: status, AfterEffect: status >= 500 && random.IntN(2) == 0})
}

func badShape(w *chaosWorld, random *rand.Rand) func() {
	return w.atlas.Inject(emulator.Fault{
		On:    someOperation(random),
		Shape: history.OneOf(random, emulator.Empty, emulator.Truncated, emulator.Reset, emulator.Drip, emulator.Stall),
	})
}

func dropped(w *chaosWorld, random *rand.Rand) func() {
	return w.atlas.Inject(emulator.Fault{
		On: someOperation(random), Drop: history.OneOf(random, emulator.ResetConnection, emulator.CloseConnection, emulator.AbortStream),
		AfterEffect: random.IntN(2) == 0,
	})
}

func lateEffect(w *chaosWorld, random *rand.Rand) func() {
	return w.atlas.Inject(emulator.Fault{On: someOperation(random), Delay: between(random, time.Second, 12*time.Second), EvenIfGone: true})
}

func throttling(w *chaosWorld, random *rand.Rand) func() {
	return w.atlas.Inject(emulator.Fault{
		On: someOperation(random), Times: 1 + random.IntN(5), Status: http.StatusTooManyRequests,
		Header: http.Header{"Retry-After": {history.OneOf(random, "1", "3", "nonsense")}},
	})
}
