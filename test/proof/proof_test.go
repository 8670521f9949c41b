package proof

import (
	"flag"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/history"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
)

// The proof that no deleted token is served: many callers create and delete concurrently through
// real servers while Atlas and Redis fail, and the history is checked against a model. Package
// history states the guarantees.
var proofOperations = flag.Int("proof.operations", 0, "total operations of TestProof; default 60,000 in a long run, else 1,000 in some of the worlds")

// proofRun is a world and its faults.
type proofRun struct {
	name     string
	replicas int
	ttl      time.Duration
	stale    time.Duration
	redis    bool
	profiles profileKind
	atlas    []emulator.Fault
	l        traffic
	// trouble causes faults until the returned function is called.
	trouble func(w *world) (stop func())
	lenient bool
	// overlaps requires that the calls for a credential overlap at Atlas in a long run.
	overlaps bool
}

// proofRuns are the worlds without profiles. A short run has the first two.
var proofRuns = []proofRun{
	{name: "one replica, memory, Atlas fails", replicas: 1, ttl: proofTTL, stale: proofTTL, atlas: failures},
	{name: "two replicas, Redis", replicas: 2, ttl: proofTTL, redis: true, atlas: slowAnswers},
	{name: "one replica, no memory", replicas: 1, atlas: slowAnswers},
	{name: "three replicas, no memory, Atlas resets", replicas: 3, atlas: resets},
	{name: "two replicas, no memory, callers cancel", replicas: 2, atlas: slowAnswers, l: traffic{impatient: .1}},
	{name: "one replica, no memory, calls overlap", replicas: 1, atlas: slowerAnswers, overlaps: true},
	{name: "one replica, memory, calls overlap", replicas: 1, ttl: proofTTL, atlas: slowerAnswers, l: traffic{fresh: .5}},
	{name: "one replica, memory, calls overlap and are refused", replicas: 1, ttl: proofTTL, stale: proofTTL, atlas: slowerFailures, l: traffic{fresh: .5}},
	{name: "one replica, memory", replicas: 1, ttl: proofTTL, atlas: slowAnswers},
	{name: "one replica, memory, Atlas resets", replicas: 1, ttl: proofTTL, atlas: resets},
	{name: "one replica, memory, late effects", replicas: 1, ttl: proofTTL, stale: proofTTL, atlas: lateEffects},
	{name: "one replica, memory, callers cancel", replicas: 1, ttl: proofTTL, atlas: slowAnswers, l: traffic{impatient: .1}},
	{name: "two replicas, Redis, calls overlap", replicas: 2, ttl: proofTTL, redis: true, atlas: slowerAnswers, l: traffic{fresh: .5}},
	{name: "three replicas, Redis, Atlas fails", replicas: 3, ttl: proofTTL, stale: proofTTL, redis: true, atlas: failures},
	{name: "three replicas, Redis, Atlas resets", replicas: 3, ttl: proofTTL, redis: true, atlas: resets},
	{name: "two replicas, Redis, late effects", replicas: 2, ttl: proofTTL, redis: true, atlas: lateEffects},
	{name: "two replicas, Redis, callers cancel", replicas: 2, ttl: proofTTL, redis: true, atlas: slowAnswers, l: traffic{impatient: .1}},
	{name: "two replicas, Redis hangs", replicas: 2, ttl: proofTTL, redis: true, atlas: slowAnswers, lenient: true, trouble: hangingRedis},
	{name: "two replicas, Redis slow", replicas: 2, ttl: proofTTL, redis: true, atlas: slowAnswers, lenient: true, trouble: slowRedis},
	{name: "two replicas, one cut off", replicas: 2, ttl: proofTTL, stale: proofTTL, redis: true, atlas: slowAnswers, lenient: true, trouble: cutOff},
	{name: "two replicas, Redis stops", replicas: 2, ttl: proofTTL, redis: true, atlas: slowAnswers, lenient: true, trouble: stoppingRedis},
	{name: "three replicas, Redis restarts empty", replicas: 3, ttl: proofTTL, redis: true, atlas: slowAnswers, lenient: true, trouble: restartingRedis},
	{name: "three replicas, Redis restarts from a snapshot", replicas: 3, ttl: longTTL, redis: true, atlas: slowAnswers, lenient: true, trouble: snapshots},
	{name: "three replicas, Redis fails over", replicas: 3, ttl: longTTL, stale: longTTL, redis: true, atlas: slowAnswers, lenient: true, trouble: failovers},
}

func TestProof(t *testing.T) {
	runs, operations := slices.Concat(testutil.Some(proofRuns, 2), testutil.Some(profileRuns, 0)), *proofOperations
	if operations == 0 {
		operations = 1000
		if testutil.Long() {
			operations = 60_000 / testutil.Slower
		}
	}
	for _, run := range runs {
		t.Run(run.name, func(t *testing.T) {
			testutil.ParallelWork(t)
			l := run.l
			l.operations, l.clients, l.deletes, l.fresh, l.invented = operations/len(runs), 16, .06, max(l.fresh, .1), .05
			// Short histories, since the cost of a check grows faster than their length.
			each := 150
			if run.lenient || run.redis {
				each = 60
			}
			orgs := max(1, l.operations/each)
			if run.profiles != noProfiles {
				l.operations, l.clients = max(l.operations, leastOfProfiles), 32
				each = max(each, 120) // fewer calls overlap
				orgs = max(1, l.operations/each/sideBySide) * sideBySide
			}
			s := setup{replicas: run.replicas, orgs: orgs, ttl: run.ttl, stale: run.stale, profiles: run.profiles}
			if run.redis {
				s.redis = redistest.Start(t)
				if !run.lenient {
					s.budget = time.Second // for a busy machine
				}
			}
			w := newWorld(t, s)
			stopFaults := w.injectFaults(run.atlas...)
			stopTrouble := func() {}
			if run.trouble != nil {
				stopTrouble = run.trouble(w)
			}
			most := w.watchCreates()
			h := w.run(t, l)
			creates := most()
			stopTrouble()
			stopFaults()
			failures := w.failedOperations(t)
			check(t, h, run.lenient || failures > 0)
			if n := h.Late(lateSlack); n > 0 && run.profiles == noProfiles {
				t.Errorf("%d tokens were deleted long after their deletes were answered", n)
			}
			if run.redis {
				w.checkRedis(t)
			}
			hits, overlapping := h.Hits()
			if run.profiles != noProfiles {
				checkProfiles(t, h, w)
			}
			if run.ttl > 0 && run.trouble == nil && hits == 0 && len(h.Events) >= enough {
				t.Error("there were no cache hits")
			}
			// While clients move to the next org, four credentials are in use.
			if run.overlaps && creates <= 4*run.replicas && len(h.Events) >= 3*enough {
				t.Errorf("only %d creates at Atlas at a time", creates)
			}
			t.Logf("%d operations, %s, %d creates at a time; %.0f %% of the creates cached, %.0f %% during a delete; %d operations on Redis failed",
				len(h.Events), w.requests(), creates, 100*hits, 100*overlapping, failures)
		})
	}
}

// enough is the number of operations that include every kind of outcome. Six percent are deletes,
// and in some worlds half of these fail.
const enough = 300

// check fails the test if the history is not legal, or has too few successes.
func check(t *testing.T, h history.History, lenient bool) {
	t.Helper()
	h.CheckLegal(t, lenient)
	creates, deletes, failed := 0, 0, 0
	for _, e := range h.Events {
		switch {
		case !e.OK:
			failed++
		case e.Op == testutil.Create:
			creates++
		default:
			deletes++
		}
	}
	// An absolute bound, since most calls may be refused while Atlas throttles a credential.
	if len(h.Events) >= enough && (creates < enough/10 || deletes == 0) {
		t.Errorf("of %d operations only %d creates and %d deletes succeeded, %d failed", len(h.Events), creates, deletes, failed)
	}
}

// every calls turns in a cycle, one per d, until stop, which calls end.
func every(d time.Duration, end func(), turns ...func()) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer end()
		for i := 0; ; i++ {
			select {
			case <-time.After(d):
				turns[i%len(turns)]()
			case <-done:
				return
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

// failedOperations returns the number of operations on Redis that exceeded their budget. A replica
// on a busy machine then gives the guarantees of one that cannot reach Redis.
func (w *world) failedOperations(t *testing.T) (n int) {
	t.Helper()
	if w.redis == nil {
		return 0
	}
	failed := regexp.MustCompile(`(?m)^tokend_cache_redis_operations_total\{operation="\w+",outcome="(?:failed|skipped)"\} (\d+)$`)
	for _, r := range w.replicas {
		for _, match := range failed.FindAllStringSubmatch(r.Metrics(t), -1) {
			count, err := strconv.Atoi(match[1])
			if err != nil {
				t.Fatal(err)
			}
			n += count
		}
	}
	return n
}

// rest is a pause that is longer than the replicas' hold-off after Redis has failed.
var rest = slices.Repeat([]func(){func() {}}, 9)

func hangingRedis(w *world) func() {
	return every(150*time.Millisecond, w.redis.Resume, slices.Concat(rest[:2], []func(){w.redis.Pause, w.redis.Resume}, rest)...)
}

func slowRedis(w *world) func() {
	delay := func(d time.Duration) func() {
		return func() {
			for i, r := range w.replicas {
				r.proxy.Delay(d * time.Duration(i+1))
			}
		}
	}
	return every(100*time.Millisecond, delay(0), delay(5*time.Millisecond), delay(30*time.Millisecond), delay(0))
}

func cutOff(w *world) func() {
	return every(200*time.Millisecond, w.replicas[0].proxy.Restore, w.replicas[0].proxy.Cut, w.replicas[0].proxy.Restore)
}

func stoppingRedis(w *world) func() {
	return every(150*time.Millisecond, w.redis.Up, slices.Concat(rest[:2], []func(){w.redis.Stop, w.redis.Up}, rest)...)
}

func restartingRedis(w *world) func() {
	return every(300*time.Millisecond, func() {}, w.redis.Restart)
}

// longTTL is longer than a restart of Redis.
const longTTL = 10 * time.Second

// lateSlack is longer than Atlas takes to execute a request, and shorter than the call ceiling.
const lateSlack = time.Second * testutil.Slower

// snapshots restarts Redis from older snapshots.
func snapshots(w *world) func() {
	save := func() { w.redis.Command("SAVE") }
	return every(100*time.Millisecond, func() {}, save, func() {}, func() {}, w.redis.Restart, func() {}, func() {}, func() {})
}

// failovers switches the roles of two Redis servers repeatedly. The replicas of the service follow
// one by one, so some stay connected to the old primary for a while.
func failovers(w *world) func() {
	primary, replica := w.redis, w.redis.Sibling()
	replica.Follow(primary)
	turns := []func(){func() {}, func() {}, func() {
		replica.Promote()
		primary.Follow(replica)
		primary, replica = replica, primary
	}}
	for i := range w.replicas {
		turns = append(turns, func() { w.replicas[i].proxy.Retarget(primary) })
	}
	return every(100*time.Millisecond, func() {}, turns...)
}
