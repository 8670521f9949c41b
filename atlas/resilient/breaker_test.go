package resilient_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/resilient"
)

func contains(words, word string) bool { return slices.Contains(strings.Fields(words), word) }

// watched is a client that keeps what it was told of its breaker.
func watched(t *testing.T, a resilient.Atlas) (*resilient.Client, *[]string) {
	t.Helper()
	heard := &[]string{}
	c, err := resilient.New(a, resilient.Config{OnChange: func(cause error) {
		if cause == nil {
			*heard = append(*heard, "closed")
			return
		}
		*heard = append(*heard, "open: "+cause.Error())
	}})
	if err != nil {
		t.Fatal(err)
	}
	return c, heard
}

// breakIt makes calls fail until the breaker opens.
func breakIt(t *testing.T, a *fakeAtlas, c *resilient.Client) {
	t.Helper()
	a.fails(atlas.Error{Kind: atlas.KindUnreachable})
	for range 100 {
		if _ = create(t.Context(), c); c.Stats().Open {
			return
		}
	}
	t.Fatal("the breaker does not open")
}

// While Atlas is down it is left alone but for a call a second, callers hear at once how long not to try, and as soon as it
// answers all goes on.
func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &fakeAtlas{}
		c, heard := watched(t, a)
		breakIt(t, a, c)
		if c.Check() == nil || !strings.Contains(c.Check().Error(), "Atlas is down since 2000-01-01T00:00:0") {
			t.Errorf("Check says %v", c.Check())
		}
		for op, call := range operations {
			before := a.calls.Load()
			err := call(t.Context(), c)
			if e := asError(t, err); e.Kind != atlas.KindUnavailable || e.Sent || string(e.Op) != op ||
				e.RetryAfter <= 0 || e.RetryAfter > 1200*time.Millisecond {
				t.Errorf("%s: %+v", op, e)
			}
			if a.calls.Load() != before {
				t.Errorf("%s: Atlas was called", op)
			}
		}
		before := a.calls.Load()
		for range 600 {
			_ = create(t.Context(), c)
			wait(100 * time.Millisecond)
		}
		if n := a.calls.Load() - before; n < 45 || n > 75 {
			t.Errorf("Atlas was called %d times in a minute, want about 60", n)
		}
		a.does(func(context.Context, int64) error { return nil })
		back := time.Now()
		for create(t.Context(), c) != nil {
			wait(10 * time.Millisecond)
		}
		if took := time.Since(back); took > 2*time.Second {
			t.Errorf("back after %v", took)
		}
		if c.Check() != nil || c.Stats().Open {
			t.Errorf("Check says %v", c.Check())
		}
		want := []string{"open: atlas: create: unreachable: as the test says", "closed"}
		if !slices.Equal(*heard, want) {
			t.Errorf("heard %q, want %q", *heard, want)
		}
	})
}

// What is the caller's or the operator's to mend does not mean that Atlas is down; nor does a caller in a hurry.
func TestBreakerStaysClosed(t *testing.T) {
	status := func(code int) atlas.Error { return atlas.Error{Kind: atlas.KindStatus, StatusCode: code, Sent: true} }
	for name, fail := range map[string]atlas.Error{
		"400": status(400), "401": status(401), "403": status(403), "404": status(404), "409": status(409), "429": status(429),
		"TLS":                {Kind: atlas.KindTLS},
		"redirect":           {Kind: atlas.KindRedirect, Sent: true},
		"invalid answer":     {Kind: atlas.KindInvalidResponse, Sent: true},
		"invalid credential": {Kind: atlas.KindInvalidCredential},
	} {
		t.Run(name, func(t *testing.T) {
			a := &fakeAtlas{}
			a.fails(fail)
			stayClosed(t, a, func(ctx context.Context, c *resilient.Client) {
				for _, call := range operations {
					_ = call(ctx, c)
				}
			})
		})
	}
	for name, caller := range map[string]func(context.Context, *resilient.Client){
		"short deadline": func(ctx context.Context, c *resilient.Client) {
			ctx, cancel := context.WithTimeout(ctx, 900*time.Millisecond)
			defer cancel()
			_ = create(ctx, c)
		},
		"caller leaves": func(ctx context.Context, c *resilient.Client) {
			ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
			defer time.AfterFunc(5*time.Second, cancel).Stop()
			_ = create(ctx, c)
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := &fakeAtlas{}
			a.hangs()
			stayClosed(t, a, caller)
		})
	}
	t.Run("two in three fail", func(t *testing.T) {
		a := &fakeAtlas{}
		a.does(func(_ context.Context, call int64) error {
			if call%3 > 0 {
				return &atlas.Error{Kind: atlas.KindTimeout}
			}
			return nil
		})
		stayClosed(t, a, func(ctx context.Context, c *resilient.Client) { _ = create(ctx, c) })
	})
}

func stayClosed(t *testing.T, a *fakeAtlas, call func(context.Context, *resilient.Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c, heard := watched(t, a)
		for range 50 {
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() { call(t.Context(), c) })
			}
			wg.Wait()
		}
		if len(*heard) > 0 || c.Check() != nil {
			t.Errorf("heard %q, Check says %v", *heard, c.Check())
		}
	})
}

// What means that Atlas is down; and any answer that is not a failure of its own, even a refusal, means that it is back.
func TestBreakerOpens(t *testing.T) {
	for name, fail := range map[string]atlas.Error{
		"500":         {Kind: atlas.KindStatus, StatusCode: 500, Sent: true},
		"504":         {Kind: atlas.KindStatus, StatusCode: 504, Sent: true},
		"timeout":     {Kind: atlas.KindTimeout, Sent: true},
		"unreachable": {Kind: atlas.KindUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &fakeAtlas{}
				a.fails(fail)
				c, heard := watched(t, a)
				for range 49 {
					_ = operations["delete"](t.Context(), c)
				}
				if fail.Sent && c.Stats().Open { // else they are retried
					t.Error("49 failures opened it")
				}
				_ = operations["delete"](t.Context(), c)
				if !c.Stats().Open {
					t.Fatal("50 failures did not open it")
				}
				wait(1200 * time.Millisecond)
				_ = operations["delete"](t.Context(), c)
				if !c.Stats().Open {
					t.Error("a probe that failed closed it")
				}
				wait(1200 * time.Millisecond)
				a.fails(atlas.Error{Kind: atlas.KindStatus, StatusCode: 401, Sent: true})
				if err := operations["delete"](t.Context(), c); kindOf(err) != atlas.KindStatus || c.Stats().Open || len(*heard) != 2 {
					t.Errorf("a probe got %v, and it is open: %t; heard %q", err, c.Stats().Open, *heard)
				}
			})
		})
	}
}

// An Atlas that hangs is down, by our own cap and by deadlines of callers who were in no hurry. What still hangs when it is
// back holds up nobody.
func TestBreakerHang(t *testing.T) {
	for name, each := range map[string]func(context.Context) (context.Context, context.CancelFunc){
		"deadlines": func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 1500*time.Millisecond)
		},
		"own cap": context.WithCancel,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &fakeAtlas{}
				a.does(func(ctx context.Context, _ int64) error {
					select {
					case <-ctx.Done():
						return &atlas.Error{Kind: atlas.KindCanceled, Sent: true, Err: ctx.Err()}
					case <-time.After(10 * time.Second):
						return &atlas.Error{Kind: atlas.KindTimeout, Sent: true}
					}
				})
				c, heard := watched(t, a)
				var wg sync.WaitGroup
				for range 300 { // 10 a second
					ctx, cancel := each(t.Context())
					wg.Go(func() {
						defer cancel()
						_ = create(ctx, c)
					})
					wait(100 * time.Millisecond)
				}
				if len(*heard) != 1 {
					t.Fatalf("heard %q", *heard)
				}
				a.does(func(context.Context, int64) error { wait(20 * time.Millisecond); return nil })
				wait(1200*time.Millisecond + 100*time.Millisecond) // for a probe
				for range 100 {
					wg.Go(func() { _ = create(t.Context(), c) })
					wait(10 * time.Millisecond)
				}
				if err := create(t.Context(), c); err != nil {
					t.Errorf("got %v: Atlas is back", err)
				}
				wg.Wait() // those that hang
				if err := create(t.Context(), c); err != nil || len(*heard) != 2 {
					t.Errorf("got %v, heard %q", err, *heard)
				}
				if s := c.Stats(); s.InFlight != 0 || s.Waiting != 0 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

// A probe whose caller leaves says nothing, and the next call is one.
func TestBreakerProbeLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &fakeAtlas{}
		c, _ := watched(t, a)
		breakIt(t, a, c)
		a.hangs()
		wait(1200 * time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := create(ctx, c); kindOf(err) != atlas.KindCanceled {
			t.Fatalf("got %v, want a probe", err)
		}
		a.does(func(context.Context, int64) error { return nil })
		if err := create(t.Context(), c); err != nil {
			t.Errorf("got %v, want the next probe", err)
		}
	})
}

// Logins do not queue behind creates.
func TestLoginPassesCreates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &fakeAtlas{}
		a.hangs()
		c := newClient(t, a)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { _ = create(ctx, c) })
		}
		synctest.Wait()
		if s := c.Stats(); s.InFlight != s.Limit || s.Waiting == 0 {
			t.Errorf("%+v", s)
		}
		a.does(func(context.Context, int64) error { return nil })
		for _, op := range []string{"login", "refresh"} {
			if err := operations[op](t.Context(), c); err != nil {
				t.Errorf("%s: %v", op, err)
			}
		}
		cancel()
		wg.Wait()
		if s := c.Stats(); s.InFlight != 0 || s.Waiting != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// No load whatever brings more calls to Atlas than MaxCalls.
func TestMaxCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &fakeAtlas{}
		var mu sync.Mutex
		now, most := 0, 0
		a.does(func(context.Context, int64) error {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			wait(10 * time.Millisecond)
			mu.Lock()
			now--
			mu.Unlock()
			return nil
		})
		c, err := resilient.New(a, resilient.Config{MaxCalls: 60})
		if err != nil {
			t.Fatal(err)
		}
		offer(t, c, 9_000, 5*time.Second)
		if most != 60 {
			t.Errorf("%d calls were at Atlas at a time, want 60", most)
		}
	})
}

func asError(t *testing.T, err error) atlas.Error {
	t.Helper()
	if kindOf(err) == 0 {
		t.Fatalf("got %v, want an *atlas.Error", err)
	}
	return *err.(*atlas.Error) //nolint:errorlint // kindOf has looked
}
