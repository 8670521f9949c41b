package proof

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/history"
)

// profileRuns are the worlds with profiles, in which logins and refreshes fail and JWTs are
// revoked.
var profileRuns = []proofRun{
	{name: "profiles, one replica, no memory", replicas: 1, profiles: fixedProfiles, atlas: slowAnswers, trouble: refusals},
	{name: "profiles, two replicas, no memory, Atlas aborts", replicas: 2, profiles: fixedProfiles, atlas: aborts, trouble: refusals},
	{name: "profiles, one replica, memory, Atlas fails", replicas: 1, profiles: fixedProfiles, ttl: proofTTL, stale: proofTTL, atlas: failures, trouble: refusals},
	{name: "profiles, two replicas, Redis", replicas: 2, profiles: fixedProfiles, ttl: proofTTL, redis: true, atlas: slowAnswers, trouble: refusals},
	{name: "profiles that change their org, no memory", replicas: 1, profiles: movingProfiles, atlas: slowAnswers, trouble: refusals},
	{name: "profiles that change their org, memory", replicas: 1, profiles: movingProfiles, ttl: proofTTL, stale: proofTTL, atlas: failures, trouble: refusals},
	{name: "profiles that change their org, two replicas, Redis", replicas: 2, profiles: movingProfiles, ttl: proofTTL, redis: true, atlas: slowAnswers, trouble: refusals},
}

// aborts ends one call at a time. A connection reset would end all calls on the connection.
var aborts = append([]emulator.Fault{
	{On: emulator.Create, Times: 1, Drop: emulator.AbortStream, AfterEffect: true},
	{On: emulator.Delete, Times: 1, Drop: emulator.AbortStream, AfterEffect: true},
}, slowAnswers...)

// leastOfProfiles is the least number of operations with profiles: enough for refused refreshes.
const leastOfProfiles = 3200

// refusals makes Atlas refuse, throttle and abort logins and refreshes, and revoke JWTs in use.
func refusals(w *world) (stop func()) {
	var removers []func()
	turn := func(also func(), faults ...emulator.Fault) func() {
		return func() {
			for _, remove := range removers {
				remove()
			}
			removers = nil
			for _, fault := range faults {
				removers = append(removers, w.atlas.Inject(fault))
			}
			also()
		}
	}
	nothing, revoke, swap := func() {}, func() { w.held.revoke(nil) }, w.held.swap
	if w.profiles != movingProfiles {
		swap = nothing
	}
	calm := turn(nothing)
	both := func(f emulator.Fault) []emulator.Fault {
		login, refresh := f, f
		login.On, refresh.On = emulator.Login, emulator.Refresh
		return []emulator.Fault{login, refresh}
	}
	return everyOnClock(w.held.clock, 40*time.Second, calm,
		// Most profiles refresh and log in once or twice meanwhile. Then there are no faults for a
		// time.
		calm, calm, turn(nothing, both(emulator.Fault{Status: 403})...), nothing, turn(nothing, both(emulator.Fault{Status: 400})...),
		calm, calm, calm, calm, turn(swap), calm, calm, turn(swap), calm, calm,
		turn(revoke), // healed by one login
		turn(nothing, both(emulator.Fault{Status: 503})...),
		turn(revoke, emulator.Fault{On: emulator.Login, Times: 4, Status: 403}), // healed by two
		calm, turn(nothing, both(emulator.Fault{Times: 4, Drop: emulator.ResetConnection})...),
		calm, turn(swap, emulator.Fault{On: emulator.Login, Times: 2, Status: 400}), // the new secret is refused at first
		turn(nothing, both(emulator.Fault{Times: 4, Status: 429, Header: http.Header{"Retry-After": {"7"}}})...),
		turn(nothing, both(emulator.Fault{Times: 4, Drop: emulator.ResetConnection, AfterEffect: true})...),
	)
}

// everyOnClock is every by a clock of the test.
func everyOnClock(clock *testutil.Clock, d time.Duration, end func(), turns ...func()) (stop func()) {
	var (
		mu      sync.Mutex
		n       int
		stopped bool
		next    func()
	)
	next = func() {
		mu.Lock()
		defer mu.Unlock()
		if !stopped {
			turns[n%len(turns)]()
			n++
			clock.AfterFunc(d, next)
		}
	}
	next()
	return func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		end()
	}
}

// checkProfiles fails the test if too few calls used profiles.
func checkProfiles(t *testing.T, h history.History, w *world) {
	t.Helper()
	calls, tokens, deletes, settled, either := map[int]int{}, map[int]int{}, map[int]int{}, 0, 0
	for _, e := range h.Events {
		calls[e.JWT]++
		switch {
		case !e.OK:
		case e.Op == testutil.Delete:
			deletes[e.JWT]++
		case e.JWT == history.Pairs && e.Either == [2]int{}:
			settled++
			fallthrough
		default:
			tokens[e.JWT]++
			if e.Either != [2]int{} {
				either++
			}
		}
	}
	if tokens[history.FirstProfile] < calls[history.FirstProfile]/10 || deletes[history.FirstProfile] == 0 {
		t.Errorf("of %d calls with profiles only %d got a token and %d deleted one", calls[history.FirstProfile], tokens[history.FirstProfile], deletes[history.FirstProfile])
	}
	if w.profiles == movingProfiles && (settled < calls[history.Pairs]/10 || w.held.swaps.Load() == 0) {
		t.Errorf("of %d calls by callers of profiles that change their org %d got a token of a certain org, with %d changes: too few",
			calls[history.Pairs], settled, w.held.swaps.Load())
	}
	figures := ""
	for _, op := range []atlas.Operation{atlas.OpLogIn, atlas.OpRefresh} {
		for _, how := range []string{"done", "refused", "failed"} {
			n := w.held.count(string(op) + " " + how)
			if figures += fmt.Sprintf(", %s %s %d", op, how, n); n == 0 && how != "failed" {
				t.Errorf("no %s was %s", op, how)
			}
		}
	}
	t.Logf("profiles: %d calls, %d tokens, %d deletes%s; pairs: %d calls, %d tokens of a certain org and %d of either, %d changes",
		calls[history.FirstProfile], tokens[history.FirstProfile], deletes[history.FirstProfile], figures, calls[history.Pairs], settled, either, w.held.swaps.Load())
}
