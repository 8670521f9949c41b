package resilient_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/resilient"
)

// busyAtlas does so many calls at a time, each in so much time, and queues those beyond.
type busyAtlas struct {
	resilient.Atlas
	workers chan struct{}
	latency atomic.Int64
}

func newBusyAtlas(workers int, latency time.Duration) *busyAtlas {
	a := &busyAtlas{workers: make(chan struct{}, workers)}
	a.latency.Store(int64(latency))
	return a
}

func (a *busyAtlas) CreateEphemeralToken(ctx context.Context, _ atlas.JWT) (atlas.Token, error) {
	select {
	case a.workers <- struct{}{}:
	case <-ctx.Done():
		return "", &atlas.Error{Op: atlas.OpCreate, Kind: atlas.KindCanceled, Err: ctx.Err(), Sent: true}
	}
	defer func() { <-a.workers }()
	wait(time.Duration(a.latency.Load()))
	return "token", nil
}

// load is what came of calls.
type load struct {
	mu       sync.Mutex
	admitted []time.Duration // guarded by mu; how long they took
	refused  []time.Duration // guarded by mu; the same for those that were refused
	other    int             // guarded by mu
}

// offer makes rate calls a second, each with two seconds of time.
func offer(t *testing.T, c *resilient.Client, rate int, duration time.Duration) *load {
	t.Helper()
	l := &load{}
	var wg sync.WaitGroup
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	for range rate * int(duration/time.Second) {
		<-tick.C
		wg.Go(func() { l.call(t, c) })
	}
	wg.Wait()
	slices.Sort(l.admitted)
	slices.Sort(l.refused)
	return l
}

// call makes one and reports whether it was answered.
func (l *load) call(t *testing.T, c *resilient.Client) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	start := time.Now()
	_, err := c.CreateEphemeralToken(ctx, "jwt")
	took := time.Since(start)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		l.admitted = append(l.admitted, took)
	case kindOf(err) == atlas.KindOverloaded:
		l.refused = append(l.refused, took)
	default:
		l.other++
	}
	return err == nil
}

func quantile(of []time.Duration, q float64) time.Duration {
	if len(of) == 0 {
		return 0
	}
	return of[int(float64(len(of)-1)*q)]
}

// An Atlas is offered ten times as many creates as it can do: it goes on doing what it can, those who are let through do not
// wait twice as long, and the rest hears of it at once.
func TestOverload(t *testing.T) {
	const workers = 20
	for _, latency := range []time.Duration{20 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond} {
		capacity := int(workers * time.Second / latency)
		t.Run(fmt.Sprintf("%d calls a second", capacity), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newClient(t, newBusyAtlas(workers, latency))
				light := offer(t, c, capacity*9/10, 10*time.Second)
				heavy := offer(t, c, capacity*10, 10*time.Second)
				t.Logf("nine tenths of that: %d admitted, p99 %v, %d refused, %d other", len(light.admitted), quantile(light.admitted, 0.99), len(light.refused), light.other)
				t.Logf("ten times that: %d admitted, p50 %v, p99 %v, %d refused in p99 %v, %d other, %+v", len(heavy.admitted), quantile(heavy.admitted, 0.5),
					quantile(heavy.admitted, 0.99), len(heavy.refused), quantile(heavy.refused, 0.99), heavy.other, c.Stats())
				if n := len(light.refused) + light.other; n > 0 {
					t.Errorf("%d calls failed of an Atlas that was up to them", n)
				}
				if n, least := len(heavy.admitted), capacity*10*9/10; n < least {
					t.Errorf("%d calls were answered in 10 s, want %d at least", n, least)
				}
				// And a tenth, as this Atlas works in step.
				if got, most := quantile(heavy.admitted, 0.99), quantile(light.admitted, 0.99)*22/10; got > most {
					t.Errorf("p99 is %v under overload, want %v at most", got, most)
				}
				if got := quantile(heavy.refused, 0.99); got > 5*time.Millisecond {
					t.Errorf("a refusal takes %v, want 5ms at most", got)
				}
				if heavy.other > 0 {
					t.Errorf("%d calls ended otherwise", heavy.other)
				}
			})
		})
	}
}

// The same for minutes on end, from the first moment: what is taken for normal does not creep up.
func TestLongOverload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, newBusyAtlas(20, 100*time.Millisecond)) // 200 a second
		goroutines := runtime.NumGoroutine()
		for minute := range 3 {
			l := offer(t, c, 400, time.Minute)
			t.Logf("minute %d: %d admitted, p99 %v, max %v; %d refused; limit %d", minute, len(l.admitted), quantile(l.admitted, 0.99), quantile(l.admitted, 1), len(l.refused), c.Stats().Limit)
			if n := len(l.admitted); n < 10_800 {
				t.Errorf("minute %d: %d calls were answered, want 10,800 at least", minute, n)
			}
			// At the beginning a queue is let grow, since it could be a burst.
			if got := quantile(l.admitted, 0.99); minute > 0 && got > 220*time.Millisecond {
				t.Errorf("minute %d: p99 is %v", minute, got)
			}
		}
		if n := runtime.NumGoroutine(); n > goroutines+1 {
			t.Errorf("%d goroutines, %d before", n, goroutines)
		}
	})
}

// An Atlas that takes ten times as long as before, and is not busy, is not taken for overloaded for long.
func TestSlowerAtlas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newBusyAtlas(1000, 20*time.Millisecond)
		c := newClient(t, a)
		offer(t, c, 300, 10*time.Second)
		a.latency.Store(int64(200 * time.Millisecond))
		offer(t, c, 300, 10*time.Second) // 60 at a time
		l := offer(t, c, 300, 10*time.Second)
		t.Logf("%d admitted, %d refused, %+v", len(l.admitted), len(l.refused), c.Stats())
		if len(l.refused) > 0 || l.other > 0 {
			t.Errorf("%d calls refused, %d ended otherwise", len(l.refused), l.other)
		}
	})
}

// A burst that Atlas is up to is not refused: not the first, and not what it does in a quarter of a second once that is known.
func TestBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, newBusyAtlas(1000, 50*time.Millisecond))
		for _, calls := range []int{500, 150} {
			var wg sync.WaitGroup
			for range calls {
				wg.Go(func() {
					if _, err := c.CreateEphemeralToken(t.Context(), "jwt"); err != nil {
						t.Errorf("one of %d: %v", calls, err)
					}
				})
			}
			wg.Wait()
		}
	})
}

// hanging has calls wait at Atlas until it lets them go, and counts those that are there.
type hanging struct {
	fakeAtlas
	there   atomic.Int64
	release chan struct{}
}

func newHanging() *hanging {
	a := &hanging{release: make(chan struct{})}
	a.does(func(context.Context, int64) error {
		a.there.Add(1)
		defer a.there.Add(-1)
		<-a.release
		return nil
	})
	return a
}

func (a *hanging) LogIn(context.Context, atlas.UserAuthToken) (atlas.JWT, error) {
	return "", &atlas.Error{Op: atlas.OpLogIn, Kind: atlas.KindStatus, StatusCode: 503, Sent: true}
}

// breakByLogins opens the breaker without a create.
func breakByLogins(t *testing.T, c *resilient.Client) {
	t.Helper()
	for range 100 {
		if _, _ = c.LogIn(t.Context(), "secret"); c.Stats().Open {
			return
		}
	}
	t.Fatal("the breaker does not open")
}

func (a *hanging) DeleteEphemeralToken(context.Context, atlas.JWT) error { return nil }

// However often Atlas goes down with calls that hang, no more than twice MaxCalls are there, all are counted, and there are connections
// left for a probe.
func TestHangingCallsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := resilient.Config{MaxCalls: 20}
		a := newHanging()
		c, err := resilient.New(a, config)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 10 {
			for range config.MaxCalls {
				wg.Go(func() { _ = create(t.Context(), c) })
			}
			wait(2 * time.Second) // who has no slot by then is refused
			if s := c.Stats(); int64(s.InFlight) != a.there.Load() {
				t.Errorf("%d calls are at Atlas, and %d are counted", a.there.Load(), s.InFlight)
			}
			breakByLogins(t, c)
			wait(2 * time.Second)
			if err := c.DeleteEphemeralToken(t.Context(), "jwt"); err != nil {
				t.Fatalf("the probe: %v", err)
			}
		}
		if n := a.there.Load(); n != int64(2*config.MaxCalls) || int(n) >= config.Conns() {
			t.Errorf("%d calls are at Atlas, want %d, and there are %d connections", n, 2*config.MaxCalls, config.Conns())
		}
		close(a.release)
		wg.Wait()
		if s := c.Stats(); s.InFlight != 0 {
			t.Errorf("in the end: %+v", s)
		}
	})
}

// newOccupied is a Client with a single slot, which a call that hangs has taken. The test has to call end.
func newOccupied(t *testing.T) (c *resilient.Client, a *hanging, calls *sync.WaitGroup, end func()) {
	t.Helper()
	a, calls = newHanging(), &sync.WaitGroup{}
	c, err := resilient.New(a, resilient.Config{MaxCalls: 1})
	if err != nil {
		t.Fatal(err)
	}
	calls.Go(func() { _ = create(t.Context(), c) })
	synctest.Wait()
	return c, a, calls, func() { close(a.release); calls.Wait() }
}

// Who waits for a slot hears as soon as Atlas is found to be down.
func TestWaitersHearThatAtlasIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, a, calls, end := newOccupied(t)
		defer end()
		start := time.Now()
		calls.Go(func() {
			if err := create(t.Context(), c); kindOf(err) != atlas.KindUnavailable || time.Since(start) > 0 {
				t.Errorf("the waiter got %v after %v", err, time.Since(start))
			}
		})
		synctest.Wait()
		breakByLogins(t, c)
		synctest.Wait()
		if s := c.Stats(); s.Waiting != 0 || a.there.Load() != 1 {
			t.Errorf("%+v, with %d calls at Atlas", s, a.there.Load())
		}
	})
}

// Who waits for a second without a slot is refused, which counts; who leaves before that is not.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, _, end := newOccupied(t)
		defer end()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second-1)
		defer cancel()
		if err := create(ctx, c); kindOf(err) != atlas.KindCanceled || c.Stats().Refused != 0 {
			t.Errorf("who left got %v, and %d were refused", err, c.Stats().Refused)
		}
		start := time.Now()
		if err := create(t.Context(), c); kindOf(err) != atlas.KindOverloaded || time.Since(start) != time.Second || c.Stats().Refused != 1 {
			t.Errorf("who waited for %v got %v, and %d were refused", time.Since(start), err, c.Stats().Refused)
		}
	})
}

// So many callers that each come back with the next call when one is answered are not refused, if Atlas can do their calls in good time, be it
// all at once or one after the other. A second is for finding out what it can do; and if it stumbles, those who are refused then and come back at
// once do not keep the others out for long.
func TestCallersThatComeBack(t *testing.T) {
	for _, test := range []struct {
		workers int
		latency time.Duration
	}{
		{1000, 10 * time.Millisecond},
		{1000, 40 * time.Millisecond},
		{20, 5 * time.Millisecond},
		{200, 20 * time.Millisecond},
	} {
		t.Run(fmt.Sprintf("%d at a time in %v", test.workers, test.latency), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newBusyAtlas(test.workers, test.latency)
				c := newClient(t, a)
				perSecond := int(time.Second/test.latency) * min(test.workers, 128) // at most so many are let at Atlas at a time
				upToThem := func() {
					t.Helper()
					l := comeBack(t, c, 512, 2*time.Second)
					t.Logf("%d answered, p50 %v, p99 %v, most %v; %d refused, %+v", len(l.admitted), quantile(l.admitted, 0.5), quantile(l.admitted, 0.99),
						quantile(l.admitted, 1), len(l.refused), c.Stats())
					if n := len(l.refused) + l.other; n > 0 {
						t.Errorf("%d calls failed of an Atlas that was up to them", n)
					}
					if n, least := len(l.admitted), 2*perSecond*9/10; n < least {
						t.Errorf("%d calls were answered in 2 s, want %d at least", n, least)
					}
				}
				comeBack(t, c, 512, time.Second)
				upToThem()
				a.latency.Store(int64(500 * time.Millisecond))
				stumbled := comeBack(t, c, 512, 2*time.Second)
				if len(stumbled.refused) == 0 {
					t.Error("nobody was refused by an Atlas that was not up to it: that proves little")
				}
				a.latency.Store(int64(test.latency))
				comeBack(t, c, 512, 12*time.Second)
				upToThem()
			})
		})
	}
}

// comeBack has so many callers make one call after the other. Who is refused comes back after ten milliseconds.
func comeBack(t *testing.T, c *resilient.Client, callers int, duration time.Duration) *load {
	t.Helper()
	l := &load{}
	end := time.Now().Add(duration)
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for time.Now().Before(end) {
				if !l.call(t, c) {
					wait(10 * time.Millisecond)
				}
			}
		})
	}
	wg.Wait()
	slices.Sort(l.admitted)
	slices.Sort(l.refused)
	return l
}
