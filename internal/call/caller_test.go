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

// as makes a call through intercept with a credential, beside whatever headers are given.
func as(t *testing.T, intercept grpc.UnaryServerInterceptor, jwt string, handler grpc.UnaryHandler, headers ...string) error {
	t.Helper()
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs(append(headers, "authorization", "JWT "+jwt)...))
	_, err := intercept(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/s/M"}, handler)
	return err
}

func ok(context.Context, any) (any, error) { return nil, nil }

// overloaded reports whether a call was refused in the form that tells its caller to wait.
func overloaded(err error) bool {
	var e *apierror.Error
	return errors.As(err, &e) && e.Reason == apierror.Overloaded && e.RetryDelay() > 0
}

// TestCallerRate checks that a caller above its rate is refused, and no other is.
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
			t.Errorf("%d calls of the flood were served, and %v refused, want 100 a second and 100 at first", served, refused)
		}
		<-time.After(time.Second)
		for range 100 {
			if err := as(t, intercept, "a.flood.c", ok); err != nil {
				t.Fatalf("after a second's rest: %v", err)
			}
		}
	})
}

// TestCallerRateIsForAtlas checks that a call that Atlas need not answer is not counted, and that a burst has to be paid for.
func TestCallerRateIsForAtlas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.CallerRate, cfg.MaxCalls = 10, 1000
		intercept := New(cfg)
		remembered := func(ctx context.Context, _ any) (any, error) {
			RecordFrom(ctx).Free = true
			return nil, nil
		}
		for range 1000 {
			if err := as(t, intercept, "a.b.c", remembered); err != nil {
				t.Fatalf("answered from memory: %v", err)
			}
		}
		var wg sync.WaitGroup
		for range 50 { // together, so that none has been charged when the last begins
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
			t.Errorf("after the first that was let through again: %v", err)
		}
	})
}

// TestCallerIsIdentity checks that a verified identity is one caller whatever credentials it brings.
func TestCallerIsIdentity(t *testing.T) {
	c := newCallers(1, 1)
	verified := func(name, jwt string) caller {
		return c.identify(auth.Grant{Caller: auth.Caller{Kind: "dns", Name: name}, JWT: atlas.JWT(jwt)})
	}
	if verified("a", "1") != verified("a", "2") || verified("a", "1") == verified("b", "1") || !verified("a", "1").known {
		t.Error("a verified caller is not told by its identity")
	}
	unverified := func(jwt string) caller {
		return c.identify(auth.Grant{Caller: auth.Caller{Kind: "atlas"}, JWT: atlas.JWT(jwt)})
	}
	again := unverified("1")
	if unverified("1").id == unverified("2").id || unverified("1") != again || again.known {
		t.Error("another caller is not told by its credential")
	}
}

// TestFault69 checks that calls with made-up credentials share one caller's part of the places, whatever their number, and leave
// nothing behind. Callers that are verified, and credentials that have had an answer, find theirs.
func TestFault69(t *testing.T) {
	t.Parallel()
	const places = 100
	c := newCallers(places, 1000)
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
		by := c.identify(atlasJWT(fmt.Sprint("made up ", n)))
		switch limit := c.enter(by, now); limit {
		case "":
			inProgress = append(inProgress, by)
		case unknownInProgressLimit:
			refused++
		default:
			t.Fatalf("a made-up credential is refused for %s", limit)
		}
	}
	if len(inProgress) != places/2 || refused != 10_000-places/2 {
		t.Errorf("%d calls with made-up credentials are in progress and %d refused, want %d in progress", len(inProgress), refused, places/2)
	}
	for name, grant := range map[string]auth.Grant{"accepted": accepted, "verified": verified} {
		var own []caller
		for range places / 5 {
			by := c.identify(grant)
			if limit := c.enter(by, now); limit != "" {
				t.Fatalf("a caller that is %s is refused for %s", name, limit)
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
		t.Errorf("%d places are taken, %d callers have calls in progress and %d are known, want 0, 0 and 2", c.taken, len(c.inProgress), len(c.recent))
	}
}

// TestShares checks that greedy callers share the places and leave one for another.
func TestShares(t *testing.T) {
	t.Parallel()
	c := newCallers(120, 0)
	callerNamed := func(name string) caller {
		return c.identify(auth.Grant{Caller: auth.Caller{Kind: "dns", Name: name}})
	}
	for greedy := 1; greedy <= 4; greedy++ {
		counts := make([]int, greedy)
		var entered []caller
		for range 120 { // in turn, as much as each gets
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
			t.Errorf("beside %d greedy callers there is no place for another", greedy)
		} else {
			entered = append(entered, by)
		}
		for _, by := range entered {
			c.leave(by, true, false, time.Now())
		}
	}
}

// TestKnownCallersAreBounded checks the memory of callers, and that those that call are kept.
func TestKnownCallersAreBounded(t *testing.T) {
	t.Parallel()
	c := newCallers(10, 1)
	regular := caller{id: 1, known: true}
	for id := range uint64(5 * maxKnown) {
		c.leave(caller{id: id + 2}, true, true, time.Now()) // without enter: the counts are not looked at here
		if id%maxKnown == 0 {
			c.leave(regular, true, true, time.Now())
		}
		if n := len(c.recent) + len(c.before); n > 2*maxKnown {
			t.Fatalf("%d callers are known, want %d at most", n, 2*maxKnown)
		}
	}
	if c.recent[regular.id] == nil && c.before[regular.id] == nil {
		t.Error("a caller that calls is forgotten")
	}
}

// TestCallerInProgress checks that one caller has half of the places at most.
func TestCallerInProgress(t *testing.T) {
	cfg := testConfig()
	cfg.MaxCalls = 4
	intercept := New(cfg)
	for _, jwt := range []string{"a.flood.c", "a.good.c"} { // so that they are known
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
		t.Errorf("the third call of one caller, of four places: %v", err)
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

// TestTrim: a call ends a little before its caller stops listening, and does not begin if too little is left by then.
func TestTrim(t *testing.T) {
	for _, tc := range []struct {
		left, want time.Duration // 0: it is refused
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
				t.Errorf("of %v the call has %v, want %v", tc.left, got, tc.want)
			}
			var e *apierror.Error
			if refused := errors.As(err, &e) && e.Reason == apierror.DeadlineExceeded; refused != (tc.want == 0) {
				t.Errorf("%v: %v", tc.left, err)
			}
		})
	}
}
