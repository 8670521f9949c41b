package call

import (
	"context"
	"errors"
	"fmt"
	"runtime"
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

// TestCallerRate: who calls more often than he may is refused, and nobody else is.
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

// TestCallerRateIsForAtlas: what Atlas need not answer does not count, and what came all at once has to be paid off.
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

// TestCallerIsIdentity: where it is known who calls, his credentials make no difference.
func TestCallerIsIdentity(t *testing.T) {
	c := newCallers(1, 1)
	known := func(name, jwt string) uint64 {
		return c.key(auth.Grant{Caller: auth.Caller{Kind: "dns", Name: name}, JWT: atlas.JWT(jwt)})
	}
	stranger := func(jwt string) uint64 {
		return c.key(auth.Grant{Caller: auth.Caller{Kind: "atlas"}, JWT: atlas.JWT(jwt)})
	}
	if known("a", "1") != known("a", "2") || known("a", "1") == known("b", "1") {
		t.Error("a caller that is known is not told by who he is")
	}
	again := stranger("1")
	if stranger("1") == stranger("2") || stranger("1") != again {
		t.Error("a caller that is not known is not told by his credential")
	}
}

// TestMadeUpCredentials: a new credential for each call costs neither memory nor those who have one.
func TestMadeUpCredentials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCallers(10, 1)
		const honest = 1
		c.enter(honest, time.Now())
		c.leave(honest, false, time.Now())
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for i := range uint64(500_000) { // 250,000 a second
			caller := i + 2
			if limit := c.enter(caller, time.Now()); limit != "" {
				t.Fatalf("somebody new is refused: %s", limit)
			}
			c.leave(caller, false, time.Now())
			if len(c.recent)+len(c.before) > 2*maxBuckets {
				t.Fatalf("%d buckets", len(c.recent)+len(c.before))
			}
			if i == 100_000 { // there is no room since long
				if limit := c.enter(honest, time.Now()); limit != callerRateLimit {
					t.Fatalf("an honest caller's bucket made room for a made-up one: %q", limit)
				}
			}
			if i%250 == 0 {
				<-time.After(time.Millisecond)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
			t.Errorf("%d MiB more are in use", grown>>20)
		}
		<-time.After(time.Minute)
		c.enter(honest, time.Now())
		if n := len(c.recent) + len(c.before); n != 1 || len(c.inProgress) != 1 {
			t.Errorf("%d buckets and %d callers in progress are left, want those of the last call", n, len(c.inProgress))
		}
	})
}

// TestNoCallerRate: without a limit of it nobody's calls are kept in mind.
func TestNoCallerRate(t *testing.T) {
	c := newCallers(10, 0)
	for range 1000 {
		if limit := c.enter(1, time.Now()); limit != "" {
			t.Fatalf("refused for %s", limit)
		}
		c.leave(1, false, time.Now())
	}
	if n := len(c.recent) + len(c.before) + len(c.inProgress); n > 0 {
		t.Errorf("%d are kept", n)
	}
}

// TestCallerInProgress: one caller has half of the places at most.
func TestCallerInProgress(t *testing.T) {
	cfg := testConfig()
	cfg.MaxCalls = 4
	intercept := New(cfg)
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
