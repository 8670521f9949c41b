package call

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
)

// as makes a call with a credential and further headers.
func as(t *testing.T, intercept grpc.UnaryServerInterceptor, jwt string, handler grpc.UnaryHandler, headers ...string) error {
	t.Helper()
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs(append(headers, "authorization", "JWT "+jwt)...))
	_, err := intercept(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/s/M"}, handler)
	return err
}

func ok(context.Context, any) (any, error) { return nil, nil }

// overloaded reports whether err is OVERLOADED with a retry delay.
func overloaded(err error) bool {
	var e *apierror.Error
	return errors.As(err, &e) && e.Reason == apierror.Overloaded && e.RetryDelay() > 0
}

// TestCallerRate checks that a caller above its rate is refused, and that another is not.
func TestCallerRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.CallerRate, cfg.MaxCalls = 100, 10
		refused := map[string]int{}
		cfg.Refused = func(limit string) { refused[limit]++ }
		intercept := New(cfg)
		served := 0
		for i := range 20_000 { // two seconds of 10,000 a second
			switch err := as(t, intercept, "a.flood.c", ok, "x-forwarded-for", fmt.Sprint(i)); {
			case err == nil:
				served++
			case !overloaded(err):
				t.Fatalf("got %v, want OVERLOADED with a delay", err)
			}
			if i%1000 == 0 {
				if err := as(t, intercept, "a.good.c", ok); err != nil {
					t.Fatalf("another caller: %v", err)
				}
			}
			<-time.After(100 * time.Microsecond)
		}
		if served < 200 || served > 301 || refused[callerRateLimit] != 20_000-served {
			t.Errorf("%d calls of the flood succeeded, refused: %v; want a burst of 100 and 100 a second", served, refused)
		}
		<-time.After(time.Second)
		for range 100 {
			if err := as(t, intercept, "a.flood.c", ok); err != nil {
				t.Fatalf("after a second: %v", err)
			}
		}
	})
}

// TestCallerRateCountsAtlasCalls checks that a cached response is not counted, and that a burst is
// paid off later.
func TestCallerRateCountsAtlasCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.CallerRate, cfg.MaxCalls = 10, 1000
		intercept := New(cfg)
		cached := func(ctx context.Context, _ any) (any, error) {
			RecordFrom(ctx).NoAtlasCall = true
			return nil, nil
		}
		for range 1000 {
			if err := as(t, intercept, "a.b.c", cached); err != nil {
				t.Fatalf("a cached response: %v", err)
			}
		}
		var wg sync.WaitGroup
		for range 50 { // concurrently, so that all enter before one is charged
			wg.Go(func() {
				_ = as(t, intercept, "a.b.c", func(context.Context, any) (any, error) {
					<-time.After(time.Millisecond)
					return nil, nil
				})
			})
		}
		wg.Wait()
		for start := time.Now(); as(t, intercept, "a.b.c", ok) != nil; <-time.After(100 * time.Millisecond) {
			if time.Since(start) > 5*time.Second {
				t.Fatal("the debt is never paid off")
			}
		}
		if err := as(t, intercept, "a.b.c", ok); !overloaded(err) {
			t.Errorf("after the next call: %v", err)
		}
	})
}

// TestCallerIdentity checks that a verified identity is one caller, whatever its credential.
func TestCallerIdentity(t *testing.T) {
	c := newCallers(1, 1)
	verified := func(name, jwt string) caller {
		return c.identify(auth.Grant{Caller: auth.Caller{Kind: "dns", Name: name}, JWT: atlas.JWT(jwt)})
	}
	if verified("a", "1") != verified("a", "2") || verified("a", "1") == verified("b", "1") || !verified("a", "1").known {
		t.Error("a verified caller is not keyed by its identity")
	}
	unverified := func(jwt string) caller {
		return c.identify(auth.Grant{Caller: auth.Caller{Kind: "atlas"}, JWT: atlas.JWT(jwt)})
	}
	again := unverified("1")
	if unverified("1").id == unverified("2").id || unverified("1") != again || again.known {
		t.Error("an unverified caller is not keyed by its credential")
	}
}

// TestFault69 checks that calls with invented credentials share one caller's slots and leave no
// state behind, and that known callers still get theirs.
func TestFault69(t *testing.T) {
	t.Parallel()
	const slots = 100
	c := newCallers(slots, 1000)
	now := time.Now()
	atlasJWT := func(jwt string) auth.Grant {
		return auth.Grant{Caller: auth.Caller{Kind: "atlas"}, JWT: atlas.JWT(jwt)}
	}
	accepted, verified := atlasJWT("accepted"), auth.Grant{Caller: auth.Caller{Kind: "dns", Name: "web"}}
	by := c.identify(accepted)
	if limit := c.enter(by, now); limit != "" {
		t.Fatalf("the first call of a credential: %s", limit)
	}
	c.leave(by, true, true, now)

	var inProgress []caller
	refused := 0
	for n := range 10_000 {
		by := c.identify(atlasJWT(fmt.Sprint("invented ", n)))
		switch limit := c.enter(by, now); limit {
		case "":
			inProgress = append(inProgress, by)
		case unknownInProgressLimit:
			refused++
		default:
			t.Fatalf("an invented credential is refused for %s", limit)
		}
	}
	if len(inProgress) != slots/2 || refused != 10_000-slots/2 {
		t.Errorf("%d calls with invented credentials are in progress and %d refused, want %d in progress", len(inProgress), refused, slots/2)
	}
	for name, grant := range map[string]auth.Grant{"accepted": accepted, "verified": verified} {
		var own []caller
		for range slots / 5 {
			by := c.identify(grant)
			if limit := c.enter(by, now); limit != "" {
				t.Fatalf("the %s caller is refused for %s", name, limit)
			}
			own = append(own, by)
		}
		for _, by := range own {
			c.leave(by, true, true, now)
		}
	}
	for _, by := range inProgress {
		c.leave(by, false, false, now)
	}
	if c.taken != 0 || len(c.inProgress) != 0 || len(c.recent) != 2 {
		t.Errorf("%d slots are taken, %d callers have calls in progress and %d are known, want 0, 0 and 2", c.taken, len(c.inProgress), len(c.recent))
	}
}

// TestShares checks that greedy callers share the slots and leave one for another caller.
func TestShares(t *testing.T) {
	t.Parallel()
	c := newCallers(120, 0)
	callerNamed := func(name string) caller {
		return c.identify(auth.Grant{Caller: auth.Caller{Kind: "dns", Name: name}})
	}
	for greedy := 1; greedy <= 4; greedy++ {
		counts := make([]int, greedy)
		var entered []caller
		for range 120 { // in turn, as many as each gets
			for n := range counts {
				if by := callerNamed(fmt.Sprint("greedy ", n)); c.enter(by, time.Now()) == "" {
					counts[n]++
					entered = append(entered, by)
				}
			}
		}
		for _, got := range counts {
			if want := 120 / (greedy + 1); got < want-1 || got > want+1 {
				t.Errorf("%d greedy callers have %v calls in progress, want about %d each", greedy, counts, want)
				break
			}
		}
		if by := callerNamed("another"); c.enter(by, time.Now()) != "" {
			t.Errorf("beside %d greedy callers there is no slot for another", greedy)
		} else {
			entered = append(entered, by)
		}
		for _, by := range entered {
			c.leave(by, true, false, time.Now())
		}
	}
}

// TestAllSlotsTaken checks that no caller gets a slot when there is none.
func TestAllSlotsTaken(t *testing.T) {
	t.Parallel()
	c := newCallers(1, 0)
	for id, want := range []string{"", inProgressLimit, inProgressLimit} {
		if got := c.enter(caller{id: uint64(id), known: true}, time.Now()); got != want {
			t.Errorf("call %d is refused for %q, want %q", id, got, want)
		}
	}
}

// TestKnownCallersBounded checks the bound on known callers, and that active ones are kept.
func TestKnownCallersBounded(t *testing.T) {
	t.Parallel()
	c := newCallers(10, 1)
	regular := caller{id: 1, known: true}
	for id := range uint64(5 * maxKnown) {
		c.leave(caller{id: id + 2}, true, true, time.Now()) // without enter: its counts do not matter here
		if id%maxKnown == 0 {
			c.leave(regular, true, true, time.Now())
		}
		if n := len(c.recent) + len(c.before); n > 2*maxKnown {
			t.Fatalf("%d callers are known, want %d at most", n, 2*maxKnown)
		}
	}
	if c.recent[regular.id] == nil && c.before[regular.id] == nil {
		t.Error("an active caller is forgotten")
	}
}

// TestCallerInProgress checks that one caller gets at most half of the slots.
func TestCallerInProgress(t *testing.T) {
	cfg := testConfig()
	cfg.MaxCalls = 4
	intercept := New(cfg)
	for _, jwt := range []string{"a.flood.c", "a.good.c"} { // makes them known
		if err := as(t, intercept, jwt, ok); err != nil {
			t.Fatal(err)
		}
	}
	leave, entered, done := make(chan struct{}), make(chan struct{}), make(chan error)
	hold := func(context.Context, any) (any, error) {
		entered <- struct{}{}
		<-leave
		return nil, nil
	}
	for range 2 {
		go func() { done <- as(t, intercept, "a.flood.c", hold) }()
		<-entered
	}
	if err := as(t, intercept, "a.flood.c", ok); !overloaded(err) {
		t.Errorf("the third call of one caller, with four slots: %v", err)
	}
	if err := as(t, intercept, "a.good.c", ok); err != nil {
		t.Errorf("another caller: %v", err)
	}
	close(leave)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if err := as(t, intercept, "a.flood.c", ok); err != nil {
		t.Errorf("after they ended: %v", err)
	}
}

// TestTrim checks that a call ends shortly before its caller's deadline, and does not start if too
// little time is left.
func TestTrim(t *testing.T) {
	for _, tc := range []struct {
		left, want time.Duration // 0: refused
	}{
		{10 * time.Second, 10*time.Second - 25*time.Millisecond},
		{250 * time.Millisecond, 225 * time.Millisecond},
		{100 * time.Millisecond, 90 * time.Millisecond},
		{6 * time.Millisecond, 5400 * time.Microsecond},
		{5500 * time.Microsecond, 0}, // 4.95 ms
		{5 * time.Millisecond, 0},
		{time.Hour, time.Minute}, // the ceiling
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "JWT a.b.c")), tc.left)
			defer cancel()
			var got time.Duration
			_, err := New(testConfig())(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/s/M"}, func(ctx context.Context, _ any) (any, error) {
				deadline, _ := ctx.Deadline()
				got = time.Until(deadline)
				return nil, nil
			})
			if got != tc.want {
				t.Errorf("with %v left the call gets %v, want %v", tc.left, got, tc.want)
			}
			var e *apierror.Error
			if refused := errors.As(err, &e) && e.Reason == apierror.DeadlineExceeded; refused != (tc.want == 0) {
				t.Errorf("%v: %v", tc.left, err)
			}
		})
	}
}
