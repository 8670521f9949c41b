package resilient

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

const (
	// A tenant fails if at least this share of its recent calls has failed.
	failingShare = 0.8
	// minFailures is how many calls must have failed before the breaker looks at tenants.
	minFailures = 10
	// fewTenants is how many tenants say too little about Atlas: if fewer fail, a probe decides.
	fewTenants = 3
	// A vote counts half after voteWindow, a quarter after twice that, and so on.
	voteWindow = 5 * time.Second
	// probeInterval is the time between two probes.
	probeInterval = time.Second

	// callerPatience is how long a call must have been at Atlas for it to count as a failure that
	// its caller's time was up.
	callerPatience = time.Second
)

// verdict is what the end of a call says about Atlas.
type verdict int

const (
	verdictNone     verdict = iota // nothing
	verdictAnswered                // it works
	verdictFailed                  // it is down, at least for this tenant
)

// judge returns what a call that ended after took says about Atlas. A refused credential says
// nothing: Atlas may check it long before it would do the work.
func judge(ctx context.Context, err error, took time.Duration) verdict {
	switch class := atlas.Classify(err); class {
	case atlas.ClassOK, atlas.ClassRejected, atlas.ClassThrottled:
		return verdictAnswered
	case atlas.ClassOutage:
		return verdictFailed
	case atlas.ClassCanceled:
		// A shared call ends with its last waiter or with its own deadline, so the context's error
		// does not say which.
		if deadline, ok := ctx.Deadline(); ok && took >= callerPatience && time.Until(deadline) < 10*time.Millisecond {
			return verdictFailed
		}
	}
	return verdictNone
}

// breaker refuses calls while Atlas is down. It opens when most of the tenants that have called
// lately fail. While it is open it probes Atlas itself, and closes at the first answer; the calls
// of callers are never probes.
//
// Few tenants may fail by their own fault. So if fewer than fewTenants fail, a probe decides
// whether the breaker opens.
type breaker struct {
	probe    func(context.Context) error
	onChange func(cause error) // called with mu held

	ctx    context.Context // of all probes
	cancel context.CancelFunc
	work   sync.WaitGroup // added to with mu held, while ctx has not ended

	mu      sync.Mutex
	votes   map[atlas.Tenant]*votes // guarded by mu; by tenant
	aged    time.Time               // guarded by mu; when the votes were last halved
	changed time.Time               // guarded by mu; when it last opened or closed
	open    bool                    // guarded by mu
	probing bool                    // guarded by mu
	cause   error                   // guarded by mu; of the last failure
}

// votes are the calls of one tenant that have ended lately.
type votes struct{ calls, failed int }

func (v *votes) failing() bool {
	return v.failed > 0 && float64(v.failed) >= failingShare*float64(v.calls)
}

func newBreaker(probe func(context.Context) error, onChange func(cause error)) *breaker {
	b := &breaker{probe: probe, onChange: onChange, votes: map[atlas.Tenant]*votes{}, aged: time.Now()}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// close ends all probes.
func (b *breaker) close() {
	b.mu.Lock()
	b.cancel()
	b.mu.Unlock()
	b.work.Wait()
}

var errOpen = errors.New("circuit breaker open: too many tenants' calls have failed")

// admit returns an error while the breaker is open.
func (b *breaker) admit(op atlas.Operation) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.open {
		return nil
	}
	return &atlas.Error{Op: op, Kind: atlas.KindUnavailable, RetryAfter: probeInterval, Err: errOpen}
}

// record notes what a tenant's call said about Atlas. A call that began before the breaker last
// changed says nothing about Atlas now.
func (b *breaker) record(tenant atlas.Tenant, began time.Time, said verdict, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if said == verdictNone || b.open || began.Before(b.changed) {
		return
	}
	b.age(time.Now())
	v := b.votes[tenant]
	if v == nil {
		v = &votes{}
		b.votes[tenant] = v
	}
	v.calls++
	if said != verdictFailed {
		return
	}
	v.failed++
	b.cause = err
	if b.probing || b.ctx.Err() != nil {
		return
	}
	if failing := b.failingTenants(); failing > 0 {
		b.probing = true
		if failing >= fewTenants {
			b.set(true)
		}
		probeNow := !b.open
		b.work.Go(func() { b.watch(probeNow) })
	}
}

// age halves the votes once for each voteWindow that has passed. The caller holds mu.
func (b *breaker) age(now time.Time) {
	for now.Sub(b.aged) >= voteWindow {
		b.aged = b.aged.Add(voteWindow)
		for tenant, v := range b.votes {
			if v.calls, v.failed = v.calls/2, v.failed/2; v.calls == 0 {
				delete(b.votes, tenant)
			}
		}
		if len(b.votes) == 0 {
			b.aged = now
		}
	}
}

// failingTenants returns how many tenants fail, 0 unless that is most of them. The caller holds mu.
func (b *breaker) failingTenants() int {
	failing, failures := 0, 0
	for _, v := range b.votes {
		if v.failing() {
			failing++
			failures += v.failed
		}
	}
	if failures < minFailures || 2*failing <= len(b.votes) {
		return 0
	}
	return failing
}

// watch probes Atlas once a second until it answers. The breaker opens, if it has not yet, when a
// probe fails or takes longer than that.
func (b *breaker) watch(probeNow bool) {
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	answers := make(chan error)
	probe := func() {
		b.work.Go(func() {
			err := b.probe(ctx)
			select {
			case answers <- err:
			case <-ctx.Done():
			}
		})
	}
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	if probeNow {
		probe()
	}
	for {
		select {
		case err := <-answers:
			b.change(err != nil)
			if err == nil {
				cancel()
				select {
				case <-tick.C: // no more than one probe a second, if calls go on failing
				case <-b.ctx.Done():
				}
				b.mu.Lock()
				b.probing = false
				b.mu.Unlock()
				return
			}
		case <-tick.C:
			b.change(true)
			probe()
		case <-b.ctx.Done():
			return
		}
	}
}

// change opens or closes the breaker.
func (b *breaker) change(open bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.set(open)
}

// set opens or closes the breaker, and forgets the votes of the time before. The caller holds mu.
func (b *breaker) set(open bool) {
	clear(b.votes)
	if open == b.open {
		return
	}
	b.open, b.changed = open, time.Now()
	if !open {
		b.cause = nil
	}
	b.onChange(b.cause)
}

// check returns what an operator should know: nil if the breaker is closed.
func (b *breaker) check() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.open {
		return nil
	}
	return fmt.Errorf("Atlas has been down since %s; tokend probes it once a second: %w", b.changed.UTC().Format(time.RFC3339), b.cause)
}
