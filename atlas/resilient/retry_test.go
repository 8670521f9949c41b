package resilient_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/resilient"
)

// TestRepeats: whether a call is retried depends on the operation and on the failure.
func TestRepeats(t *testing.T) {
	const all, createOnly = "create delete login refresh", "create"
	status := func(code int) atlas.Error { return atlas.Error{Kind: atlas.KindStatus, StatusCode: code, Sent: true} }
	for _, tc := range []struct {
		name     string
		fail     atlas.Error
		repeated string
	}{
		{"not reached", atlas.Error{Kind: atlas.KindUnreachable}, all},
		{"lost", atlas.Error{Kind: atlas.KindUnreachable, Sent: true}, "create login refresh"},
		{"cut short", atlas.Error{Kind: atlas.KindUnreachable, StatusCode: 201, Sent: true}, "create login refresh"},
		{"large headers", atlas.Error{Kind: atlas.KindUnreachable, Sent: true, Err: atlas.ErrProtocol}, ""},
		{"500", status(500), createOnly},
		{"502", status(502), createOnly},
		{"503", status(503), createOnly},
		{"504", status(504), createOnly},
		{"503 for later", atlas.Error{Kind: atlas.KindStatus, StatusCode: 503, RetryAfter: time.Second, Sent: true}, ""},
		{"501", status(501), ""},
		{"400", status(400), ""},
		{"401", status(401), ""},
		{"403", status(403), ""},
		{"404", status(404), ""},
		{"409", status(409), ""},
		{"429", status(429), ""},
		{"TLS", atlas.Error{Kind: atlas.KindTLS}, ""},
		{"timeout", atlas.Error{Kind: atlas.KindTimeout, Sent: true}, ""},
		{"redirect", atlas.Error{Kind: atlas.KindRedirect, StatusCode: 302, Sent: true}, ""},
		{"invalid answer", atlas.Error{Kind: atlas.KindInvalidResponse, StatusCode: 201, Sent: true}, ""},
		{"invalid credential", atlas.Error{Kind: atlas.KindInvalidCredential}, ""},
		{"gave up", atlas.Error{Kind: atlas.KindCanceled, Sent: true, Err: context.Canceled}, ""},
	} {
		for op, call := range operations {
			t.Run(tc.name+"/"+op, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a := newSimulated()
					a.everything(fails(&tc.fail, 0))
					want := 1
					if contains(tc.repeated, op) {
						want = 3
					}
					err := call(t.Context(), newClient(t, a))
					if kindOf(err) != tc.fail.Kind {
						t.Errorf("got %v", err)
					}
					if n := a.count(""); n != want {
						t.Errorf("Atlas was called %d times, want %d", n, want)
					}
				})
			})
		}
	}
}

var operations = map[string]func(context.Context, testClient) error{
	"create": func(ctx context.Context, c testClient) error {
		_, err := c.CreateEphemeralToken(ctx, "jwt")
		return err
	},
	"delete": func(ctx context.Context, c testClient) error { return c.DeleteEphemeralToken(ctx, "jwt") },
	"login": func(ctx context.Context, c testClient) error {
		_, err := c.LogIn(ctx, "secret")
		return err
	},
	"refresh": func(ctx context.Context, c testClient) error {
		_, err := c.RefreshJWT(ctx, "jwt")
		return err
	},
}

func create(ctx context.Context, c testClient) error { return operations["create"](ctx, c) }

// A repeat begins only if there is time for it, and the waits before it are spread.
func TestRepeatTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newSimulated()
		a.everything(fails(&atlas.Error{Kind: atlas.KindUnreachable}, 0))
		for range 5 {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			start, before := time.Now(), a.count("")
			err := create(ctx, newClient(t, a))
			if kindOf(err) != atlas.KindUnreachable || time.Since(start) != 0 || a.count("")-before != 1 {
				t.Errorf("got %v after %v and %d calls, want the first failure at once", err, time.Since(start), a.count("")-before)
			}
			cancel()
		}
		waits := map[time.Duration]bool{}
		for range 20 {
			start := time.Now()
			_ = create(t.Context(), newClient(t, a))
			waits[time.Since(start)] = true
			if took := time.Since(start); took > 150*time.Millisecond {
				t.Errorf("two repeats took %v", took)
			}
		}
		if len(waits) < 15 {
			t.Errorf("20 calls took %d different times", len(waits))
		}
	})
}

// A caller that leaves during the wait is not kept, and gets the failure.
func TestLeaveDuringWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newSimulated()
		ctx, cancel := context.WithCancel(t.Context())
		a.everything(func(context.Context) error {
			time.AfterFunc(time.Nanosecond, cancel)
			return &atlas.Error{Kind: atlas.KindUnreachable}
		})
		if err := create(ctx, newClient(t, a)); kindOf(err) != atlas.KindUnreachable {
			t.Errorf("got %v", err)
		}
		if n := a.count(""); n != 1 {
			t.Errorf("Atlas was called %d times", n)
		}
	})
}

// A call whose retry is not let through ends with what Atlas said, which tells more.
func TestRefusedRetry(t *testing.T) {
	t.Run("by the breaker", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newSimulated()
			a.everything(fails(&atlas.Error{Kind: atlas.KindStatus, StatusCode: 503, Sent: true}, 0))
			c := newClient(t, a)
			for range 9 { // one failure less than opens the breaker
				_ = operations["delete"](t.Context(), c)
			}
			if err := create(t.Context(), c); kindOf(err) != atlas.KindStatus {
				t.Errorf("got %v, want Atlas's 503", err)
			}
			if n := a.count(""); n != 10 {
				t.Errorf("Atlas was called %d times: the retry was let through", n)
			}
		})
	})
	t.Run("by the limiter", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newSimulated()
			var calls atomic.Int64
			a.everything(func(context.Context) error {
				call := calls.Add(1)
				if call == 1 {
					wait(time.Second)
					return &atlas.Error{Kind: atlas.KindStatus, StatusCode: 503, Sent: true}
				}
				wait(time.Minute)
				return nil
			})
			c := newClientWith(t, a, resilient.Config{MaxCalls: 1})
			var wg sync.WaitGroup
			defer wg.Wait()
			time.AfterFunc(time.Second/2, func() { // it waits, and has the slot when the first fails
				wg.Go(func() { _ = create(t.Context(), c) })
			})
			if err := create(t.Context(), c); kindOf(err) != atlas.KindStatus || c.Stats().Refused != 1 {
				t.Errorf("got %v, want Atlas's 503; %+v", err, c.Stats())
			}
		})
	})
}

// TestGoneBeforehand checks that a call whose context has ended does not reach Atlas.
func TestGoneBeforehand(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a := newSimulated()
	if err := create(ctx, newClient(t, a)); kindOf(err) != atlas.KindCanceled || !errors.Is(err, context.Canceled) || a.count("") != 0 {
		t.Errorf("got %v after %d calls", err, a.count(""))
	}
}

func TestNewRefusesBadConfig(t *testing.T) {
	if _, err := resilient.New(newSimulated(), resilient.Config{MaxCalls: -1}); err == nil || !strings.Contains(err.Error(), "MaxCalls is -1") {
		t.Errorf("got %v", err)
	}
}

// A failure of no kind that is known is not retried, and is what the caller gets.
func TestUnknownFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		unknown := errors.New("what is this")
		a := newSimulated()
		var calls atomic.Int64
		a.everything(func(context.Context) error {
			call := calls.Add(1)
			if call == 1 {
				return &atlas.Error{Kind: atlas.KindUnreachable}
			}
			return unknown
		})
		if err := create(t.Context(), newClient(t, a)); !errors.Is(err, unknown) || a.count("") != 2 {
			t.Errorf("got %v after %d calls", err, a.count(""))
		}
	})
}

// With one in twenty creates failing, callers notice nothing, and Atlas has a tenth more calls at
// most.
func TestFivePercentFail(t *testing.T) {
	const calls = 20_000
	for seed := range uint64(5) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dice := rand.New(rand.NewPCG(seed, 1))
				failures := []atlas.Error{{Kind: atlas.KindStatus, StatusCode: 503, Sent: true}, {Kind: atlas.KindUnreachable, Sent: true}}
				a := newSimulated()
				a.everything(func(context.Context) error {
					wait(20 * time.Millisecond)
					if dice.IntN(20) == 0 {
						return &failures[dice.IntN(2)]
					}
					return nil
				})
				c, failed := newClient(t, a), 0
				for range calls {
					if create(t.Context(), c) != nil {
						failed++
					}
				}
				t.Logf("%d of %d failed, %.3f calls to Atlas for each, %+v", failed, calls, float64(a.count(""))/calls, c.Stats())
				if failed > calls/1000 {
					t.Errorf("%d of %d creates failed", failed, calls)
				}
				if n := a.count(""); n > calls*11/10 {
					t.Errorf("%d creates cost %d calls to Atlas", calls, n)
				}
			})
		})
	}
}

// TestAllFail: with all creates of its only tenant failing, Atlas has a tenth more calls at most,
// and a few at the start.
func TestAllFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const calls = 1000
		a := newSimulated()
		a.does("org", fails(status(503), 0))
		c := newClient(t, a)
		for range calls {
			if _, err := c.CreateEphemeralToken(t.Context(), jwtOf("org", 0)); err == nil {
				t.Fatal("no error")
			}
			wait(time.Second)
		}
		s, retries := c.Stats(), a.count("org")-calls
		t.Logf("%d retries, %+v", retries, s)
		if retries > calls/10+5 || retries < calls/10 {
			t.Errorf("%d creates cost %d retries", calls, retries)
		}
		if s.Retries != uint64(retries) || s.OutOfBudget < calls/2 || s.OutOfBudget > calls {
			t.Errorf("%d retries, and as many calls without one, are counted as %+v", retries, s)
		}
	})
}
